"""`python -m videopanda` is the command `videopanda`."""

from videopanda.cli import main

main()
