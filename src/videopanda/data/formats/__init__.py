"""Training formats of the field: one small pure function per format, each into the same `Record`."""
