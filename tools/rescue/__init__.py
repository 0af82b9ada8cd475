"""A damaged stream: what survived, and in which state each page is."""
