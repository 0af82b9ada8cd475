"""How long tests wait for what must come.

Only what never comes takes that long, so a test that passes is no slower for it. Tests about how
soon something comes have limits of their own.
"""

PATIENCE = 200.0
"""The time in seconds: more than a machine needs whose processors are all busy with other work."""
