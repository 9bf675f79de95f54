"""Proof that a checkpoint is what it claims to be."""
