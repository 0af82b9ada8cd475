"""Descriptors that survive being handed to a spawned process."""

from __future__ import annotations

import mmap
import os
import select
import threading
from collections.abc import Iterable


class SharedFd:
    """Owns a descriptor. In an argument of `process.start_child` it arrives as a duplicate."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def memory(cls, name: str, size: int) -> SharedFd:
        """Anonymous shared memory of `size` bytes."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return cls(fd)

    @classmethod
    def event(cls, value: int = 0, *, semaphore: bool = False) -> SharedFd:
        """An eventfd that starts at `value`."""
        flags = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0)
        return cls(os.eventfd(value, flags))

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def map(self, size: int) -> mmap.mmap:
        """Map the first `size` bytes, shared."""
        return mmap.mmap(self._fd, size)

    def close(self) -> None:
        """Close it; again is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Wakeup:
    """A descriptor that becomes readable, for good, when somebody calls `set`."""

    def __init__(self) -> None:
        self._event = SharedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        # A signal handler may set it while its own thread holds the lock.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """The descriptor."""
        return self._event.fileno()

    def set(self) -> None:
        """From any thread or signal handler; once closed, nothing happens."""
        with self._lock:
            if self._event.fileno() >= 0:
                os.eventfd_write(self._event.fileno(), 1)

    def close(self) -> None:
        """Close it; nobody waits any more."""
        with self._lock:
            self._event.close()


def wait_readable(fds: Iterable[int], timeout: float | None = None) -> set[int]:
    """Those of `fds` that are readable (or broken), waiting up to `timeout` seconds (None: ever).

    An empty set: the time is over.
    """
    return Readiness(*fds).ready(timeout)


class Readiness:
    """Which of some descriptors are readable, asked again and again at little cost."""

    def __init__(self, *fds: int, events: int = select.POLLIN) -> None:
        """`events`: what to look for; with 0, only whether the other end is gone."""
        self._poll = select.poll()
        for fd in fds:
            self._poll.register(fd, events)

    def ready(self, timeout: float | None = None) -> set[int]:
        """See `wait_readable`."""
        found = self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return {fd for fd, _ in found}

    def now(self) -> bool:
        """Whether any is readable, or broken, at this moment."""
        return bool(self._poll.poll(0))
