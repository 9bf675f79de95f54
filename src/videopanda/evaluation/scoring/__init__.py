"""Scorers without a judge: deterministic, offline, named with a version and a hash."""
