"""Defines the commands: their options, their help, and the calls that do the work."""
