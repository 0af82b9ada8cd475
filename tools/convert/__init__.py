"""Copies a stream from one container into another."""
