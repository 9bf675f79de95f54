"""A server on one engine: an OpenAI-compatible API, a web page, many users."""
