"""Readers for sources that are not seekable: pipes, and the content of compressed data.

They return the bytes before damage first and raise the error after them, so that a stream which
ends before the damage can be read completely. Bytes that were read too far can be put back, and the
remaining bytes can be counted.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ...protocol.errors import StreamError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_COUNTED = 64 << 20
"""The most bytes of content after a stream that are decompressed in order to count them."""
CHUNK = 128 << 10
"""The number of compressed bytes that are read at once."""
_STEP = 1 << 20
GUESSED = (
    "nothing confirms where the stream ends: it describes no devices, and what follows the last "
    "place where it may end is not all zeros; give --length if you know how long it is"
)


@dataclass(frozen=True)
class Left:
    """The number of bytes after a position: `count`, or at least that many if it is not `exact`.

    `layer` names the compressed data that the bytes follow; None means that they follow the stream
    itself. `guessed` means that the end of the stream is not confirmed, and may be earlier.
    """

    count: int
    exact: bool = True
    layer: str | None = None
    guessed: bool = False

    def describe(self) -> str:
        """Return a description for users, in one line."""
        count = "1 byte" if self.count == 1 else f"{self.count} bytes"
        least = "" if self.exact else "at least "
        what = "stream" if self.layer is None else f"{self.layer} data"
        were = "was" if self.count == 1 else "were"
        return f"{least}{count} behind the end of the {what} {were} not looked at"

    def warning(self) -> str | None:
        """Return a one-line warning, or None if the end of the stream is known."""
        return GUESSED if self.guessed else None

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys bytes, exact, layer (None, or the name of a
        compression), warning (None, or a line that says that the end of the stream is a guess).
        """
        return {
            "bytes": self.count,
            "exact": self.exact,
            "layer": self.layer,
            "warning": self.warning(),
        }


class Content(io.RawIOBase):
    """The content of compressed data in `source`, which is positioned at `offset`; a base class.

    The data is one part (a frame, a file) or several concatenated parts. Bytes that do not begin a
    part end the data, and are not examined.
    """

    def __init__(self, source: BinaryIO, offset: int, name: str) -> None:
        self._source = source
        self._offset = offset
        """The offset up to which the source was read."""
        self._error: StreamError | None = None
        self.name = name
        self.given = 0
        """The number of content bytes that were read."""
        self.part_start = 0
        """The offset in the content at which the current part began."""
        self.part_offset = offset
        """The offset in the compressed data at which the current part began."""
        self.behind = b""
        """The bytes that were read from the source past the end of the data."""

    def readable(self) -> bool:
        """Return True: the content is readable."""
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        """Read the bytes that are available, at least one before the end. Raises StreamError."""
        if self._error is not None:
            raise self._error
        try:
            count = self._give(memoryview(target).cast("B"))
        except StreamError as error:
            # The traceback is dropped: its frames would keep their buffers in memory.
            self._error = error.with_traceback(None)
            raise
        self.given += count
        return count

    def _read(self) -> bytes:
        """Return the next bytes of the source."""
        data = self._source.read(CHUNK)
        self._offset += len(data)
        return data

    def _give(self, view: memoryview) -> int:
        """Fill the view as far as one step goes, with at least one byte; return 0 at the end of the
        data.
        """
        raise NotImplementedError

    def left(self, offset: int | None = None) -> Left:
        """Count the bytes in the source after the end of the data, or from `offset` on."""
        read = 0 if offset is None else self._offset - offset
        if offset is None:
            give_back(self._source, self.behind)
            self.behind = b""
        found = left_in(self._source)
        return Left(read + found.count, found.exact, found.layer or self.name)


class Source(io.BufferedIOBase):
    """A reader for a file that is not seekable; bytes can be put back into it."""

    def __init__(self, raw: BinaryIO | io.RawIOBase) -> None:
        self._raw: Any = raw
        self._back = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        """Return True: the source is readable."""
        return True

    def readinto1(self, target: WriteableBuffer, /) -> int:
        """Read the bytes that are available, at least one before the end."""
        view = memoryview(target).cast("B")
        if self._back:
            count = min(len(view), len(self._back))
            view[:count] = self._back[:count]
            self._back = self._back[count:]
        else:
            read = getattr(self._raw, "readinto1", self._raw.readinto)
            count = read(view)
        self._position += count
        return count

    def readinto(self, target: WriteableBuffer, /) -> int:
        """Read until `target` is full, or until the end or an error; return the number of bytes."""
        return fill(self, memoryview(target).cast("B"))

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next `size` bytes, or as many as there are before the end or before damage."""
        everything = size is None or size < 0
        found, left = [], _STEP if size is None or size < 0 else size
        while left:
            piece = bytearray(min(_STEP, left))
            count = self.readinto(piece)
            found.append(bytes(piece[:count]))
            left -= 0 if everything else count
            if not count or (count < len(piece) and not everything):
                break
        return b"".join(found)

    def put_back(self, data: bytes) -> None:
        """Put back the last bytes that were read, so that they are read again."""
        self._back = memoryview(data + bytes(self._back))
        self._position -= len(data)

    def left_behind(self, count: int, damage: StreamError | None) -> Left:
        """Count the bytes after the position `count` bytes back; all bytes up to here were read
        since.

        `damage` is the error that was raised after them. It is raised again if it is in the same
        compressed part as that position: a failed checksum at the end of the part means that the
        stream is damaged.
        """
        if not isinstance(self._raw, Content):
            return Left(count)
        if damage is not None:
            if self._raw.part_start < self._position - count:
                raise damage
            return self._raw.left(self._raw.part_offset)
        return Left(count) if count else self._raw.left()

    def left(self) -> Left:
        """Count the bytes after the current position. Raises StreamError.

        The compressed part at that position is read to its end to verify its checksum; damage after
        that part is not damage of the stream.
        """
        if not isinstance(self._raw, Content):
            return Left(len(self._back), exact=False)
        end, piece, count = self._position, bytearray(_STEP), 0
        while count < MAX_COUNTED:
            try:
                step = self.readinto1(piece)
            except StreamError:
                if self._raw.part_start < end:
                    raise
                return self._raw.left(self._raw.part_offset)
            if not step:
                return Left(count) if count else self._raw.left()
            count += step
        return Left(count, exact=False)


def fill(stream: Any, view: memoryview) -> int:
    """Read until the view is full or the stream ends, and return the number of bytes.

    Bytes that arrive before an error are returned; the error is raised by the next call.
    """
    read = getattr(stream, "readinto1", stream.readinto)
    filled = 0
    while filled < len(view):
        try:
            count = read(view[filled:])
        except (StreamError, OSError):
            if not filled:
                raise
            break
        if not count:
            break
        filled += count
    return filled


def give_back(stream: BinaryIO, data: bytes) -> None:
    """Move the stream back to before these bytes, which are the last that were read from it."""
    if stream.seekable():
        stream.seek(-len(data), os.SEEK_CUR)
    elif isinstance(stream, Source):
        stream.put_back(data)


def left_in(stream: BinaryIO) -> Left:
    """Count the bytes after the current position of a stream. Raises StreamError."""
    if isinstance(stream, Source):
        return stream.left()
    if not stream.seekable():
        return Left(0, exact=False)
    place = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    origin = getattr(getattr(stream, "raw", None), "origin", None)
    if end <= place and origin is not None:
        # The stream is a temporary copy of `origin`, so any further bytes can only be there.
        return left_in(origin)
    return Left(max(0, end - place))


def sought_or_source(file: BinaryIO) -> BinaryIO:
    """Return the file itself if it is seekable, or else a Source that wraps it."""
    return file if file.seekable() else cast(BinaryIO, Source(file))
