"""Formats the output that a user sees: messages, progress, tables and sizes."""
