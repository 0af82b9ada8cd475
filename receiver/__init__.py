"""The incoming migration."""
