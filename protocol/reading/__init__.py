"""Read the parts of a stream, with one module for each kind of part."""
