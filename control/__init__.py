"""Control migrations and report on them: the service, its QMP commands and events."""
