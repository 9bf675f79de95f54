"""The command line: `app` and one file per group of verbs."""
