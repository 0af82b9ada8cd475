"""Limit the time of a block of awaits.

`asyncio.wait_for` is not used: before Python 3.12 it may swallow a cancellation that arrives with
the result, and `asyncio.timeout` begins with Python 3.11.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """A context manager that raises asyncio.TimeoutError in its block after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Deadline:
        task = asyncio.current_task()
        assert task is not None
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire, task)
        return self

    def _expire(self, task: asyncio.Task[object]) -> None:
        self._expired = True
        task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError:
            raise asyncio.TimeoutError from None
