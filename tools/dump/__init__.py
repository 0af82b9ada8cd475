"""What `vmferry dump` shows of a stream."""
