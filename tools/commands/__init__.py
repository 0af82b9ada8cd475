"""The commands: their options, their help, and the call that does the work."""
