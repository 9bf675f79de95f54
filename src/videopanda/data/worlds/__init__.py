"""Generated worlds with exact answers."""
