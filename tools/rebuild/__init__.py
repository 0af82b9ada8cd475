"""A guest rebuilt from a stream: which pages arrived, and the files that hold them."""
