"""Writes the guest in a stream to files."""
