"""Run the source side of a migration."""
