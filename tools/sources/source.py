"""Sources that cannot be sought in: pipes, and the content of compressed data.

They give the bytes before damage first and raise behind them, so that a stream which ends before
the damage is read to its end. What was read too far can be put back, and what is left be counted.
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
"""Bytes of content behind a stream that are decompressed in order to count them."""
CHUNK = 128 << 10
"""Compressed bytes that are read at once."""
_STEP = 1 << 20
GUESSED = (
    "nothing confirms where the stream ends: it describes no devices, and what follows the last "
    "place where it may end is not all zeros; give --length if you know how long it is"
)


@dataclass(frozen=True)
class Left:
    """How many bytes stand behind a place: `count`, or more where that is not `exact`.

    `layer`: the name of the compressed data behind which they stand; None: behind the stream
    itself. `guessed`: nothing tells where it ends, and it may end before.
    """

    count: int
    exact: bool = True
    layer: str | None = None
    guessed: bool = False

    def describe(self) -> str:
        """Return one line."""
        count = "1 byte" if self.count == 1 else f"{self.count} bytes"
        least = "" if self.exact else "at least "
        what = "stream" if self.layer is None else f"{self.layer} data"
        were = "was" if self.count == 1 else "were"
        return f"{least}{count} behind the end of the {what} {were} not looked at"

    def warning(self) -> str | None:
        """Return what to warn of, in one line; None if it is known where the stream ends."""
        return GUESSED if self.guessed else None

    def as_json(self) -> dict[str, Any]:
        """Keys: bytes, exact, layer (null, or the name of a compression), warning (null, or a line:
        nothing tells where the stream ends)."""
        return {
            "bytes": self.count,
            "exact": self.exact,
            "layer": self.layer,
            "warning": self.warning(),
        }


class Content(io.RawIOBase):
    """The content of compressed data in `source`, which stands at `offset`; kinds derive from it.

    The data are one part (a frame, a file) or several that follow each other. What does not begin
    as a part does stands behind the end, and is not looked at.
    """

    def __init__(self, source: BinaryIO, offset: int, name: str) -> None:
        self._source = source
        self._offset = offset
        """Where the source stands, as far as it was read."""
        self._error: StreamError | None = None
        self.name = name
        self.given = 0
        """Bytes of content that were read."""
        self.part_start = 0
        """Where in the content the present part began."""
        self.part_offset = offset
        """Where in the compressed data it began."""
        self.behind = b""
        """Bytes that were read from the source, and stand behind the end of the data."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        """What is at hand, at least a byte unless the end is reached. Raises StreamError."""
        if self._error is not None:
            raise self._error
        try:
            count = self._give(memoryview(target).cast("B"))
        except StreamError as error:
            # Without all that the frames of the traceback hold.
            self._error = error.with_traceback(None)
            raise
        self.given += count
        return count

    def _read(self) -> bytes:
        """The next bytes of the source."""
        data = self._source.read(CHUNK)
        self._offset += len(data)
        return data

    def _give(self, view: memoryview) -> int:
        """Fill the view as far as one step goes, with at least a byte; 0: the data have ended."""
        raise NotImplementedError

    def left(self, offset: int | None = None) -> Left:
        """Count what stands in the source behind the end of the data, or from this offset on."""
        read = 0 if offset is None else self._offset - offset
        if offset is None:
            give_back(self._source, self.behind)
            self.behind = b""
        found = left_in(self._source)
        return Left(read + found.count, found.exact, found.layer or self.name)


class Source(io.BufferedIOBase):
    """Reads from what cannot be sought in; bytes may be put back."""

    def __init__(self, raw: BinaryIO | io.RawIOBase) -> None:
        self._raw: Any = raw
        self._back = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto1(self, target: WriteableBuffer, /) -> int:
        """What is at hand, at least a byte unless the end is reached."""
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
        """As much as there is, see `fill`."""
        return fill(self, memoryview(target).cast("B"))

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes, or as many as there are before the end, or before damage."""
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
        """The last bytes that were read come again."""
        self._back = memoryview(data + bytes(self._back))
        self._position -= len(data)

    def left_behind(self, count: int, damage: StreamError | None) -> Left:
        """Return what stands behind the place `count` bytes back, all of which was read since.

        `damage`: what was raised behind them. Raises it where it is of the part in which that place
        is: a checksum at its end says that the stream is damaged.
        """
        if not isinstance(self._raw, Content):
            return Left(count)
        if damage is not None:
            if self._raw.part_start < self._position - count:
                raise damage
            return self._raw.left(self._raw.part_offset)
        return Left(count) if count else self._raw.left()

    def left(self) -> Left:
        """Count what stands behind the present place. Raises StreamError.

        The part of compressed data in which that place is, is read to its end, so that its checksum
        is checked; damage behind it is not damage of the stream.
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
    """Read until the view is full or the stream ends; how many bytes.

    What arrived before an error is returned, and the error is raised when it is read again.
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
    """Let a stream stand before these last bytes that were read from it."""
    if stream.seekable():
        stream.seek(-len(data), os.SEEK_CUR)
    elif isinstance(stream, Source):
        stream.put_back(data)


def left_in(stream: BinaryIO) -> Left:
    """Count what stands behind the present place of a stream. Raises StreamError."""
    if isinstance(stream, Source):
        return stream.left()
    if not stream.seekable():
        return Left(0, exact=False)
    place = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    origin = getattr(getattr(stream, "raw", None), "origin", None)
    if end <= place and origin is not None:
        # All of it was copied from there.
        return left_in(origin)
    return Left(max(0, end - place))


def sought_or_source(file: BinaryIO) -> BinaryIO:
    """What bytes can be put back into: the file itself where it can be sought in."""
    return file if file.seekable() else cast(BinaryIO, Source(file))
