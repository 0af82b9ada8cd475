"""A QMP client for people."""
