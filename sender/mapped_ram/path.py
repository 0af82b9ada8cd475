"""Prepare and complete a mapped-ram file: what is before, between and behind its pages."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ...guest.base import Guest
from ...guest.errors import MigrationError
from ...guest.parts import DeviceState, Machine
from ...protocol.devices.description import DescriptionError
from ...protocol.pages.mapped_layout import place_blocks
from ...protocol.pages.mapped_pages import list_pieces
from ...protocol.reading.configuration import MAPPED_RAM
from ...protocol.wire.marks import MAGIC
from ...transport.channel import Channel, ChannelError
from ...transport.direct import DIRECT_ALIGNMENT, reopen, why_not
from ...transport.sparse import write_at
from ...transport.uri import File, Uri
from .. import stream
from ..page_path import WorkerEntry
from .plan import FilePlan, plan_file
from .process import run_file_worker

_MAGIC = MAGIC.to_bytes(4, "big")


class MappedPath:
    """The way of pages into a mapped-ram file, which `workers` processes write at once.

    With `direct_io` they bypass the page cache.
    """

    def __init__(self, workers: int, machine: Machine, *, direct_io: bool) -> None:
        self._workers = workers
        self._machine = machine
        self._direct_io = direct_io
        self._capabilities = tuple(sorted({*(machine.capabilities or ()), MAPPED_RAM}))
        self._channel: Channel | None = None
        self._plan: FilePlan | None = None
        self._start = 0
        self._head = b""

    def check_uri(self, uri: Uri) -> None:
        """Raise MigrationError unless pages have a place where the URI points to."""
        if not isinstance(uri, File):
            raise MigrationError(f"{uri}: mapped-ram gives each page a place: send to file:")
        if not _may_be_file(uri.path):
            raise MigrationError(f"{uri}: mapped-ram needs a regular file or a block device")
        if self._direct_io:
            _check_direct_io(uri, self._machine.page_size)

    def connect(self, main: Channel, connect: Callable[[], Channel]) -> Sequence[Channel]:
        """Return the file once more for each worker."""
        del connect
        opened: list[Channel] = []
        try:
            for _ in range(self._workers):
                opened.append(reopen(main, os.O_WRONLY, direct_io=self._direct_io))
        except ChannelError:
            for file in opened:
                file.abort()
            raise
        return opened

    def begin(
        self, channel: Channel, guest: Guest, state: DeviceState, *, return_path: bool
    ) -> bytes:
        """Keep what precedes the iterative sections: it has its place in the file."""
        with _writing(channel):
            self._channel, self._start = channel, os.lseek(channel.fileno(), 0, os.SEEK_CUR)
        self._head = stream.head(guest, state, self._capabilities, return_path=return_path)
        return b""

    def ram_start(self, guest: Guest, section_id: int) -> bytes:
        """Write what is before and between the pages, and return what follows them."""
        channel = self._channel
        assert channel is not None
        with _writing(channel):
            head = self._head + stream.ram_head(section_id)
            listed = replace(stream.block_list(guest), offset=len(head))
            placed, end = place_blocks(listed, self._start)
            self._plan = plan_file(placed)
            # The first bytes stay away until all is there but the end.
            pieces = [(0, bytes(len(_MAGIC)) + head[len(_MAGIC) :]), *list_pieces(placed)]
            for place, piece in pieces:
                write_at(channel.fileno(), piece, self._start + place)
            # All processes that write to the main channel share this offset.
            os.lseek(channel.fileno(), end, os.SEEK_SET)
        return stream.part_tail(section_id, flush=False)

    def worker(self) -> WorkerEntry:
        """Return the entry of a worker that writes into the file."""
        return run_file_worker, (self._plan,)

    def round_head(self, section_id: int) -> bytes:  # noqa: ARG002
        """Return nothing: a round is in the file alone."""
        return b""

    def round_tail(self, section_id: int) -> bytes:  # noqa: ARG002
        """Return nothing: a round is in the file alone."""
        return b""

    def finish(self) -> None:
        """Write the bitmaps, and the bytes that make the file a stream."""
        channel, plan = self._channel, self._plan
        assert channel is not None
        assert plan is not None
        with _writing(channel):
            for name, bitmap in plan.bitmaps().items():
                write_at(channel.fileno(), bitmap.data, plan.blocks[name].place.bitmap_offset)
            write_at(channel.fileno(), _MAGIC, self._start)

    def closing(self, state: DeviceState) -> bytes:
        """Return the end of the stream, whose description names the capability.

        Raises MigrationError.
        """
        try:
            return stream.closing(state, self._capabilities)
        except DescriptionError as error:
            raise MigrationError(f"the guest's description makes no sense: {error}") from error

    def close(self) -> None:
        """Release the bitmaps."""
        if self._plan is not None:
            self._plan.memory.close()


@contextmanager
def _writing(channel: Channel) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ChannelError(f"{channel.name}: {error.strerror}") from error


def _may_be_file(path: str) -> bool:
    """Return whether there is, or can be made, a file at `path` that takes writes at any offset."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        # Whoever opens it says what is wrong.
        return True
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _check_direct_io(uri: File, page_size: int) -> None:
    """Raise MigrationError unless pages can be written to the file past the page cache."""
    if page_size % DIRECT_ALIGNMENT:
        raise MigrationError(f"pages of {page_size} bytes are too small for --direct-io")
    existed = os.path.lexists(uri.path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC
        os.close(os.open(uri.path, flags, 0o600))
    except OSError as error:
        # A file system that refuses may have made the file before that.
        if not existed and os.path.lexists(uri.path):
            os.unlink(uri.path)
        raise MigrationError(f"{uri}: {why_not(error)}") from error
