"""`python -m videopanda` is the command `videopanda`."""

from videopanda.cli.app import main

main()
