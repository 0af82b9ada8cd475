"""The events of a stream that can be read: piece by piece, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_CUR
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from ..protocol import events
from ..protocol.errors import StreamError, UnsupportedError
from ..protocol.mapped_pages import OnMissing, read_pages
from ..protocol.ram import SECTION_NAME
from ..protocol.reader import StreamReader
from .source import Left, fill, give_back, left_in

if TYPE_CHECKING:
    from .channels import Channels

PIECE = 4 << 20
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Behind:
    """The last event where more stands in the same place, behind the end of the stream."""

    offset: int
    left: Left


Found: TypeAlias = "events.Event | Behind"


def read_events(
    stream: BinaryIO,
    page_size: int = 4096,
    channels: Channels | None = None,
    *,
    reader: StreamReader | None = None,
    on_missing: OnMissing | None = None,
) -> Iterator[Found]:
    """All events of a stream; page data is valid until the next one is asked for.

    The pages of a mapped-ram file come behind the list of RAM blocks. `page_size`: bytes, where the
    stream does not say before its pages come. What stands behind the end of the stream is counted;
    the last event says so. `channels`: those of a multifd migration whose main channel this is;
    their pages are put where they belong. `reader`: what reads them, which knows where it failed.
    `on_missing`: as in `read_pages`.
    """
    reader = StreamReader(page_size=page_size) if reader is None else reader
    found = _read_events(stream, reader, on_missing)
    return found if channels is None else channels.merge(found)


def _read_events(
    stream: BinaryIO, reader: StreamReader, on_missing: OnMissing | None
) -> Iterator[Found]:
    start = stream.tell() if stream.seekable() else None
    buffer = memoryview(bytearray(PIECE))
    kept = 0
    while not reader.finished:
        if start is not None and reader.to_skip:
            stream.seek(reader.to_skip, SEEK_CUR)
            reader.skip(reader.to_skip)
        count = fill(stream, buffer[kept:])
        if not count:
            yield from reader.close()
            kept = 0
            break
        failure: StreamError | None = None
        try:
            found, done = reader.parse(buffer[: kept + count])
        except StreamError as error:
            found, done, failure = list(error.found), 0, error
        for event in found:
            yield event
            if isinstance(event, events.RamBlocks) and any(b.mapped for b in event.blocks):
                yield from mapped_pages(stream, start, event, on_missing)
        if failure is not None:
            raise failure
        rest = bytes(buffer[done : kept + count])
        buffer[: len(rest)] = rest
        kept = len(rest)
    give_back(stream, bytes(buffer[:kept]))
    left = left_in(stream)
    if left.count:
        yield Behind(0, left)


def from_a_pipe(listed: events.RamBlocks) -> UnsupportedError:
    """What is wrong with a mapped-ram stream that cannot be sought in."""
    message = "a mapped-ram stream is read from a file, not from a pipe"
    return UnsupportedError(message, offset=listed.offset, section=SECTION_NAME)


def mapped_pages(
    stream: BinaryIO,
    start: int | None,
    listed: events.RamBlocks,
    on_missing: OnMissing | None = None,
) -> Iterator[events.Event]:
    """The pages of a mapped-ram file whose stream begins at `start` in the file."""
    if start is None:
        raise from_a_pipe(listed)
    first, behind = start, stream.tell()

    def read_at(position: int, size: int) -> bytes:
        stream.seek(first + position)
        return stream.read(size)

    yield from read_pages(listed, read_at, on_missing)
    stream.seek(behind)
