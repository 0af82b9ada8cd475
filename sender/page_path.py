"""Define the ways that pages can take from the workers to the destination.

Usually they are records on the main channel (`MainPath`). With multifd each worker has a channel of
its own, and with mapped-ram they are written to their places in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..guest.base import Guest
from ..guest.parts import DeviceState
from ..transport.channel import Channel
from ..transport.uri import Uri
from . import stream
from .scanners import run_worker

WorkerEntry = tuple[Callable[..., None], tuple[Any, ...]]
"""Entry point of a worker process: a function, and its arguments after connection, setup, ring."""


class PagePath(Protocol):
    """The way of a migration's pages, as the coordinator prepares and ends it."""

    def check_uri(self, uri: Uri) -> None:
        """Raise MigrationError unless pages can take this way there; leave everything as it is."""

    def connect(self, main: Channel, connect: Callable[[], Channel]) -> Sequence[Channel]:
        """Return a channel for each worker, in order, or none besides the `main` one.

        `connect` opens a further one to the same destination. Raises MigrationError, ChannelError.
        """

    def begin(
        self, channel: Channel, guest: Guest, state: DeviceState, *, return_path: bool
    ) -> bytes:
        """Return what the main channel carries before the iterative sections.

        Raises ChannelError.
        """

    def ram_start(self, guest: Guest, section_id: int) -> bytes:
        """Return the piece that begins `ram`, after `begin`. Raises ChannelError."""

    def worker(self) -> WorkerEntry:
        """Return what each worker process runs, after `ram_start`."""

    def round_head(self, section_id: int) -> bytes:
        """Return what the main channel carries before a round."""

    def round_tail(self, section_id: int) -> bytes:
        """Return what the main channel carries behind a round."""

    def finish(self) -> None:
        """Complete what was written beside the main channel, once all but its end was sent.

        Raises ChannelError.
        """

    def closing(self, state: DeviceState) -> bytes:
        """Return the end of the stream."""

    def close(self) -> None:
        """Release what was shared with the workers, which have ended."""


class MainPath:
    """The main channel: pages are records in the slots of the workers' rings."""

    def check_uri(self, uri: Uri) -> None:
        """Accept every URI; other paths refuse some."""

    def connect(self, main: Channel, connect: Callable[[], Channel]) -> Sequence[Channel]:
        """Return no channel: pages go over the main one."""
        del main, connect
        return ()

    def begin(
        self, channel: Channel, guest: Guest, state: DeviceState, *, return_path: bool
    ) -> bytes:
        """Return the beginning of an ordinary stream."""
        del channel
        return stream.head(guest, state, guest.machine.capabilities, return_path=return_path)

    def ram_start(self, guest: Guest, section_id: int) -> bytes:
        """Return the list of RAM blocks."""
        return stream.ram_start(guest, section_id, flush=False)

    def worker(self) -> WorkerEntry:
        """Return the entry of a worker that fills its ring."""
        return run_worker, ()

    def round_head(self, section_id: int) -> bytes:  # noqa: ARG002
        """Return nothing: each slot is a whole piece of `ram`."""
        return b""

    def round_tail(self, section_id: int) -> bytes:  # noqa: ARG002
        """Return nothing: each slot is a whole piece of `ram`."""
        return b""

    def finish(self) -> None:
        """Do nothing: all is on the main channel."""

    def closing(self, state: DeviceState) -> bytes:
        """Return the end of an ordinary stream."""
        return stream.closing(state)

    def close(self) -> None:
        """Do nothing: nothing was shared."""
