"""Converts official Video-Panda and EVE checkpoints to videopanda checkpoints, and verifies checkpoints."""
