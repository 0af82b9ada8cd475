"""Events: made by any thread, heard in the service's event loop in the order they were made."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .extensions import STALL_EVENT

EVENTS = ("MIGRATION", "MIGRATION_PASS", "RESUME", "SHUTDOWN", "STOP", STALL_EVENT)

Event = dict[str, Any]
"""As a client sees it: `event`, `timestamp`, and `data` where it has any."""
Listener = Callable[[Event], None]


class Events:
    """Tells every listener of every event, once, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Event] = deque()
        self._listeners: list[Listener] = []

    def add_listener(self, listener: Listener) -> None:
        """Call `listener(event)`, in the loop's thread, for every event from now on."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """No more of them."""
        self._listeners.remove(listener)

    def emit(self, name: str, **data: Any) -> None:
        """Make an event; from any thread. Nobody hears it when the loop is closed."""
        if self._loop.is_closed():
            return
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        event: Event = {"timestamp": {"seconds": seconds, "microseconds": microseconds}}
        event["event"] = name
        if data:
            event["data"] = data
        self._waiting.append(event)
        self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Tell of all that were made by now; only in the loop's thread."""
        while self._waiting:
            event = self._waiting.popleft()
            for listener in list(self._listeners):
                listener(event)
