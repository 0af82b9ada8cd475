"""Pages of memory in bulk: records, encodings and packets, through numpy."""
