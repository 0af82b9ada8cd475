"""Read the state of devices: its description, its fields, and where it ends."""
