"""The only place that decodes videos."""
