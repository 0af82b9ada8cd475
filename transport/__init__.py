"""Move the bytes of a migration: channels, shared-memory ring, rate limit, child processes."""
