"""How long tests wait for what must come.

Only what never comes takes that long, so a test that passes is no slower for it. Tests about how
soon something comes have limits of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 200.0
"""The time in seconds: more than a machine needs whose processors are all busy with other work."""


def wait_until(condition: Callable[[], object], shown: Callable[[], object] = str) -> None:
    """Wait until the condition holds; `shown` returns what a test that fails here says."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.01)
