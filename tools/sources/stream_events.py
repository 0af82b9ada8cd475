"""Reads the events of a stream piece by piece, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import SEEK_CUR, SEEK_END
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from ...protocol import events
from ...protocol.devices.candidates import Candidate, candidates
from ...protocol.errors import StreamError, UnsupportedError
from ...protocol.pages.mapped_pages import OnMissing, read_pages
from ...protocol.reader import StreamReader
from ...protocol.wire.kept import LARGE, Kept, Part, Payload
from ...protocol.wire.marks import DEFAULT_PAGE_SIZE, PAGE_SIZES
from ...protocol.wire.ram import SECTION_NAME
from ...protocol.wire.stream import section_footer
from ...transport.spill import Spill
from .source import Left, Source, fill, give_back, left_in

if TYPE_CHECKING:
    from .channels import Channels


PIECE = 4 << 20
"""The number of bytes that are read at once."""

MAX_DEVICE_STATE = 1 << 30
"""The default limit in bytes of device state in a stream that is not seekable.

That much state, and as many bytes after the stream, is kept in a temporary file until the end of
the stream is known.
"""


@dataclass(frozen=True)
class Behind:
    """The last event, if bytes follow the end of the stream or that end is only a guess."""

    offset: int
    left: Left


Found: TypeAlias = events.Event | Behind


@dataclass(frozen=True)
class How:
    """Options that set how a stream is read.

    `page_size` is the page size in bytes for a stream whose pages arrive before it is known; None
    means the page size in the description of a seekable stream, or else 4096. `max_device_state`
    limits the bytes of device state, and of one piece of an unknown section; None means no limit,
    or MAX_DEVICE_STATE for a stream that is not seekable.
    """

    page_size: int | None = None
    max_device_state: int | None = None


USUALLY = How()
"""The default options."""


class InPlace:
    """The bytes of a seekable file from an offset to its end; implements Kept."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream = stream
        self._start = start
        here = stream.tell()
        self._size = max(0, stream.seek(0, SEEK_END) - start)
        stream.seek(here)

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return self._size

    def append(self, data: memoryview) -> None:
        """Do nothing: the bytes are already in the file."""

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or as many as there are."""
        here = self._stream.tell()
        try:
            self._stream.seek(self._start + start)
            return self._stream.read(max(0, min(size, self._size - start)))
        finally:
            self._stream.seek(here)

    def part(self, start: int, size: int) -> Payload:
        """Return the payload at `start`; a large one stays in the file, which must remain open."""
        return self.read(start, size) if size <= LARGE else Part(self, start, size)


class _Described:
    """Facts from the vmstate description, looked up before the stream is read up to it."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._all = InPlace(stream, start)
        self._last: Candidate | None = None
        self._sizes: dict[tuple[str, int], int] | None = None

    def size_of(self, offset: int, section_id: int, name: str, instance_id: int) -> int | None:
        """Return the size of a section's payload in bytes, or None if its footer does not follow
        there.
        """
        size = self._look().get((name, instance_id))
        footer = section_footer(section_id)
        if size is None or self._all.read(offset + size, len(footer)) != footer:
            return None
        return size

    def page_size(self) -> int | None:
        """Return the page size in bytes, or None if the description has no valid one."""
        self._look()
        size = None if self._last is None else self._last.json.get("page_size")
        return size if size in PAGE_SIZES else None

    def _look(self) -> dict[tuple[str, int], int]:
        """Search for the description, once; return the sizes of devices in bytes by name and
        instance id.
        """
        if self._sizes is None:
            self._last = next(candidates(self._all), None)
            listed = [] if self._last is None else self._last.devices
            self._sizes = {(one.name, one.instance_id): one.length.size for one in listed}
        return self._sizes


class Reading:
    """A reader of one stream: its events, and the raw bytes that they were parsed from.

    A seekable stream is read in place. From one that is not, device state is kept until the end
    (see `protocol.devices.ending`), in a temporary file if it is larger than a few MiB.
    """

    def __init__(
        self,
        stream: BinaryIO,
        how: How = USUALLY,
        on_missing: OnMissing | None = None,
    ) -> None:
        self._stream = stream
        self._on_missing = on_missing
        self._start = stream.tell() if stream.seekable() else None
        self._damage: StreamError | None = None
        self._ended = False
        """A flag which says that a stream that is not seekable was read to its end."""
        described = None if self._start is None else _Described(stream, self._start)
        limit = how.max_device_state
        if limit is None and described is None:
            limit = MAX_DEVICE_STATE
        self.reader = StreamReader(
            page_size=how.page_size or DEFAULT_PAGE_SIZE,
            described_page_size=None if how.page_size or described is None else described.page_size,
            keep=Spill,
            keep_rest=None if self._start is None else self._in_place,
            max_device_state=limit,
            described_size=None if described is None else described.size_of,
        )

    def _in_place(self, offset: int) -> Kept:
        assert self._start is not None
        return InPlace(self._stream, self._start + offset)

    def pieces(self) -> Iterator[tuple[list[events.Event], memoryview]]:
        """Yield events, and the bytes of the stream that they were parsed from, up to its end.

        Both are valid until the next ones are requested. Raises StreamError, OSError.
        """
        buffer, kept, at = memoryview(bytearray(PIECE)), 0, 0
        while not self.reader.finished and (self.reader.rest is None or self._start is None):
            skipped = self.reader.to_skip if self._start is not None else 0
            if skipped:
                self._stream.seek(skipped, SEEK_CUR)
                self.reader.skip(skipped)
                at += skipped
            try:
                count = fill(self._stream, buffer[kept:])
            except StreamError as error:
                if self.reader.rest is None:
                    raise
                # The compressed data is damaged here, possibly after the end of the stream itself.
                self._damage, self._ended = error, True
                break
            if not count:
                self._ended = True
                break
            failure: StreamError | None = None
            try:
                found, done = self.reader.parse(buffer[: kept + count])
            except StreamError as error:
                found, done, failure = list(error.found), 0, error
            rest = self.reader.rest
            yield found, buffer[: done if rest is None else max(0, min(done, rest.offset - at))]
            if failure is not None:
                raise failure
            left = bytes(buffer[done : kept + count])
            buffer[: len(left)] = left
            kept, at = len(left), at + done
        if self._start is None:
            give_back(self._stream, bytes(buffer[:kept]))
        yield from self._last_pieces()

    def _last_pieces(self) -> Iterator[tuple[list[events.Event], memoryview]]:
        """Yield the bytes that were kept up to the end, in pieces, after the last events."""
        try:
            found = self.reader.close()
        except StreamError as error:
            raise self._damage or error from None
        yield found, memoryview(b"")
        rest = self.reader.rest
        assert rest is not None
        for at in range(rest.offset, self.reader.end, PIECE):
            size = min(PIECE, self.reader.end - at)
            yield [], memoryview(rest.kept.read(at - rest.offset, size))

    def left(self) -> Left:
        """Count the bytes after the stream; call this after all its events were read."""
        return replace(self._left(), guessed=self.reader.guessed)

    def _left(self) -> Left:
        reader = self.reader
        assert reader.rest is not None
        if self._start is not None:
            self._stream.seek(self._start + reader.end)
            return left_in(self._stream)
        if self._ended and isinstance(self._stream, Source):
            return self._stream.left_behind(reader.behind, self._damage)
        more = left_in(self._stream)
        count = reader.behind
        return Left(count + more.count, more.exact) if count else more

    def all_events(self) -> Iterator[Found]:
        """Yield all events; the pages of a mapped-ram file follow the list of RAM blocks.

        Page data is valid until the next event is requested. If bytes follow the end of the stream,
        or if that end is a guess, the last event is a Behind. Raises StreamError, OSError.
        """
        for found, _ in self.pieces():
            for event in found:
                yield event
                if isinstance(event, events.RamBlocks) and any(b.mapped for b in event.blocks):
                    yield from mapped_pages(self._stream, self._start, event, self._on_missing)
            if self.reader.finished:
                break
        left = self.left()
        if left.count or left.guessed:
            yield Behind(0, left)


def read_events(
    stream: BinaryIO, how: How = USUALLY, channels: Channels | None = None
) -> Iterator[Found]:
    """Yield all events of a stream, and a Behind if bytes follow it. Raises StreamError, OSError.

    `channels` are those of the multifd migration whose main channel this is; their pages are
    inserted where they belong.
    """
    found = Reading(stream, how).all_events()
    return found if channels is None else channels.merge(found)


def from_a_pipe(listed: events.RamBlocks) -> UnsupportedError:
    """Return the error for a mapped-ram stream that is not seekable."""
    message = "a mapped-ram stream is read from a file, not from a pipe"
    return UnsupportedError(message, offset=listed.offset, section=SECTION_NAME)


def mapped_pages(
    stream: BinaryIO,
    start: int | None,
    listed: events.RamBlocks,
    on_missing: OnMissing | None = None,
) -> Iterator[events.Event]:
    """Yield the pages of a mapped-ram file whose stream begins at `start` in the file."""
    if start is None:
        raise from_a_pipe(listed)
    first, behind = start, stream.tell()

    def read_at(position: int, size: int) -> bytes:
        stream.seek(first + position)
        return stream.read(size)

    yield from read_pages(listed, read_at, on_missing)
    stream.seek(behind)
