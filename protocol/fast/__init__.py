"""Examine a stream without building its events."""
