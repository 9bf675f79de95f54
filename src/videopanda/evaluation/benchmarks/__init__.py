"""Benchmarks as data: every annotation format is read into one `Item`, and nothing is dropped silently."""
