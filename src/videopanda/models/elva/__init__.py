"""The ELVA model family: configuration, processors, model. Each name is imported on first use."""
