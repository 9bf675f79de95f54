"""Checks of reference numbers, one function per kind of file; the layout is that of the golden README.

Each function takes what its file holds and returns `Findings`: for every compared thing the largest error beside its
tolerance. Nothing here knows the names of single files.
"""
