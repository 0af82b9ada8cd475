"""Turns the name that a user gives into the events of a stream."""
