"""Run the destination side of a migration."""
