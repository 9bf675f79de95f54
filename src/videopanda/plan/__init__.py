"""Estimates the cost of a request in advance: tokens, FLOPs, memory, time; and the error for one that does not fit."""
