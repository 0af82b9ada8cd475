"""Compares two streams, and compares the RAM that a stream rebuilds with an image."""
