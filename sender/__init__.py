"""The outgoing migration."""
