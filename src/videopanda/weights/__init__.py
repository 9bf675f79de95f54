"""Files of weights: where every tensor lies, checked copies of its bytes, checksums. Needs no model."""
