"""Data: samples, conversation files, collation, and the generated world (`scenes`)."""
