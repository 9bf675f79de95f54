"""Common training formats: one small pure function per format, all producing the same `Record`."""
