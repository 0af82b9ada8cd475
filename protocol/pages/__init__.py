"""Process pages of memory in bulk, with numpy: records, encodings and packets."""
