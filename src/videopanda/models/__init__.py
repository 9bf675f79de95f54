"""Model families. Each folder is self-contained: torch, transformers and its own files."""
