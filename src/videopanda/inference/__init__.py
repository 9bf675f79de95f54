"""One inference core for the library, the chat, evaluation and the server."""
