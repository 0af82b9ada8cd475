"""Reads damaged streams: finds what survived, and tracks the state of each page."""
