"""From the name that a user gives to the events of a stream."""
