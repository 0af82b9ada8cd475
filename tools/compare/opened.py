"""Opens a stream to compare, and rebuilds the guest in it."""

from __future__ import annotations

from contextlib import ExitStack

from ..rebuild.guest import RebuiltGuest, rebuild
from ..sources.opening import opened_stream
from ..sources.stream_events import How, read_events


def opened_guest(
    path: str,
    how: How,
    stack: ExitStack,
    *,
    offset: int = 0,
    length: int | None = None,
    channels: tuple[str, ...] = (),
) -> RebuiltGuest:
    """Return the guest that a stream builds, with all its RAM, which is valid until `stack` is
    closed.

    `offset`, `length` and `channels` are as in `opened_stream`.
    """
    # Large device state stays in the file of the stream, so keep that open.
    opened = stack.enter_context(opened_stream(path, offset, channels=channels, length=length))
    return rebuild(read_events(opened.stream, how, opened.channels), stack)
