"""Scores by a judge, a language model that compares replies with right answers."""
