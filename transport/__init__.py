"""How bytes travel: channels, the shared-memory ring, rate limiting, child processes."""
