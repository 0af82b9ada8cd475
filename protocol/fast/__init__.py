"""Walking over a stream without building its events."""
