"""Implements `vmferry dump`, which shows the content of a stream."""
