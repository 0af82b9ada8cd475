"""Device state: its description, its fields, and where it ends."""
