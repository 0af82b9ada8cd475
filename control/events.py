"""Deliver events from any thread to listeners in the service's event loop, in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .extensions import STALL_EVENT

EVENTS = ("MIGRATION", "MIGRATION_PASS", "RESUME", "SHUTDOWN", "STOP", STALL_EVENT)

Event = dict[str, Any]
"""An event as a client sees it: `event`, `timestamp`, and `data` if it has any."""
Listener = Callable[[Event], None]


class Events:
    """The queue of events; every listener receives every event once, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Event] = deque()
        self._listeners: list[Listener] = []

    def add_listener(self, listener: Listener) -> None:
        """Call `listener(event)`, in the loop's thread, for every event from now on."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Stop calling this listener."""
        self._listeners.remove(listener)

    def emit(self, name: str, **data: Any) -> None:
        """Create an event; callable from any thread. After the loop is closed, it is dropped."""
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
        """Deliver all events created so far; callable only in the loop's thread."""
        while self._waiting:
            event = self._waiting.popleft()
            for listener in list(self._listeners):
                listener(event)
