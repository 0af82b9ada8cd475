"""Rebuilds a guest from a stream: tracks which pages arrived, and keeps their content in files."""
