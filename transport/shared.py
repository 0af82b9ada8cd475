"""Own descriptors that can be passed to child processes, and wait for descriptors."""

from __future__ import annotations

import mmap
import os
import select
import threading
from collections.abc import Iterable
from contextlib import suppress


class SharedFd:
    """Owner of a descriptor; passed to `process.start_child`, it arrives as a duplicate."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def memory(cls, name: str, size: int) -> SharedFd:
        """Return anonymous shared memory of `size` bytes."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return cls(fd)

    @classmethod
    def event(cls, value: int = 0, *, semaphore: bool = False) -> SharedFd:
        """Return an eventfd that starts at `value`."""
        flags = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if semaphore else 0)
        return cls(os.eventfd(value, flags))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def map(self, size: int) -> mmap.mmap:
        """Map the first `size` bytes, shared."""
        return mmap.mmap(self._fd, size)

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Wakeup:
    """A descriptor that becomes readable, for good, when `set` is called."""

    def __init__(self) -> None:
        self._event = SharedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        # A signal handler may call `set` while its own thread holds the lock.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._event.fileno()

    def set(self) -> None:
        """Make the descriptor readable, from any thread or signal handler.

        Once closed, this does nothing.
        """
        with self._lock:
            if self._event.fileno() >= 0:
                os.eventfd_write(self._event.fileno(), 1)

    def close(self) -> None:
        """Close the descriptor, which must not be waited for any more."""
        with self._lock:
            self._event.close()


class Bell(Wakeup):
    """A descriptor that becomes readable when `set` is called, until `clear` is."""

    def clear(self) -> None:
        """Make the descriptor unreadable again, if it was readable."""
        with self._lock, suppress(BlockingIOError):
            if self._event.fileno() >= 0:
                os.eventfd_read(self._event.fileno())


def wait_readable(fds: Iterable[int], timeout: float | None = None) -> set[int]:
    """Return those of `fds` that are readable or broken, after at most `timeout` seconds.

    None waits for ever. The set is empty if the time is over.
    """
    return Readiness(*fds).ready(timeout)


class Readiness:
    """Poll for some descriptors that is cheap to repeat."""

    def __init__(self, *fds: int, events: int = select.POLLIN) -> None:
        """Watch `fds` for `events`; with 0, only for the loss of the other end."""
        self._poll = select.poll()
        for fd in fds:
            self._poll.register(fd, events)

    def ready(self, timeout: float | None = None) -> set[int]:
        """Return the readable or broken descriptors, after at most `timeout` seconds.

        None waits for ever.
        """
        found = self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return {fd for fd, _ in found}

    def now(self) -> bool:
        """Return whether any descriptor is readable or broken at this moment."""
        return bool(self._poll.poll(0))
