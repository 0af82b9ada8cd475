"""Parts of the stream reader, one for each kind of piece."""
