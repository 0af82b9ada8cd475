"""A stream moved from one container into another."""
