"""What differs between two streams, and whether a stream rebuilds a memory image."""
