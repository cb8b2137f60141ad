"""Vectors and text in, neighbours out, and the immutable generations they are read from."""
