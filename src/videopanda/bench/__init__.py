"""What the vision part costs, measured against its peers in one run."""
