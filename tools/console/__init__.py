"""What a person at a terminal sees: messages, progress, tables and sizes."""
