"""A QMP client for users."""
