"""A guest taken out of a stream, as files."""
