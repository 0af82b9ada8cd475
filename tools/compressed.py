"""Compressed files read as what they hold, in bounded memory, whatever they say of themselves.

zstd, gzip, bzip2 and xz; lzop is in a file of its own.

Each is a raw stream over a source that is read from where it stands. What is wrong with the
compressed data raises CompressedError.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

import zstandard

from ..protocol import lzop, zstd
from ..protocol.zstd import MAX_WINDOW, CompressedError, FrameWalker
from .lzop import Blocks

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 128 << 10
"""Compressed bytes that are read at once."""
MAX_XZ_MEMORY = 128 << 20
"""Bytes; twice what `xz -9` asks for."""


class _Decompressor(Protocol):
    """What bz2 and lzma have, of one file among those that follow each other."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecompressor:
    """zlib's, in the same form."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        # zlib may hold more than it gave only where it gave all that it might.
        self.needs_input = not self._inflate.unconsumed_tail and len(found) < max_length
        return found


@dataclass(frozen=True)
class Format:
    """`magic`: how a file of it begins. `open`: the content of a source, which stands at the
    offset given."""

    name: str
    magic: bytes
    open: Callable[[BinaryIO, int], io.RawIOBase]


class Members(io.RawIOBase):
    """gzip, bzip2 or xz: one file, or several behind each other, perhaps with zeros between."""

    def __init__(
        self, source: BinaryIO, offset: int, name: str, make: Callable[[], _Decompressor]
    ) -> None:
        self._source = source
        self._offset = offset
        self._name = name
        self._make = make
        self._decompressor: _Decompressor | None = make()
        self._input = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        """What is at hand, at least a byte unless the end is reached. Raises CompressedError."""
        view = memoryview(target).cast("B")
        while self._decompressor is not None and len(view):
            found = self._decompress(self._decompressor, len(view))
            if self._decompressor.eof:
                self._next(self._decompressor.unused_data)
            if found:
                view[: len(found)] = found
                return len(found)
        return 0

    def _decompress(self, decompressor: _Decompressor, most: int) -> bytes:
        data = b""
        if decompressor.needs_input:
            data = self._input or self._read()
            if not data:
                message = f"the stream ends within its {self._name} data"
                raise CompressedError(message, offset=self._offset)
        self._input = b""
        try:
            return decompressor.decompress(data, most)
        except (zlib.error, OSError, ValueError, lzma.LZMAError) as error:
            message = f"bad {self._name} data: {error}"
            raise CompressedError(message, offset=self._offset - len(data)) from None

    def _read(self) -> bytes:
        data = self._source.read(CHUNK)
        self._offset += len(data)
        return data

    def _next(self, rest: bytes) -> None:
        """Behind the end of one: another one, or nothing."""
        while not (rest := rest.lstrip(b"\0")):
            rest = self._read()
            if not rest:
                self._decompressor = None
                return
        self._decompressor = self._make()
        self._input = rest


class _Pieces:
    """Gives the parts of one zstd frame after the other, as a source for the decompressor."""

    def __init__(self, source: BinaryIO, offset: int) -> None:
        self._source = source
        self._base = offset
        self._walker = FrameWalker(0)
        self._waiting = b""
        self._found: deque[tuple[bytes, int, bool]] = deque()
        self._ended = True
        self.offset = offset

    def begin(self) -> bool:
        """Go on to the next frame, if there is one."""
        self._ended = not self._has_more()
        return not self._ended

    def read(self, _size: int) -> bytes:
        """The next part of the frame; nothing behind its end."""
        if self._ended or not self._has_more():
            return b""
        data, self.offset, self._ended = self._found.popleft()
        return data

    def _has_more(self) -> bool:
        while not self._found:
            if self._walker.error is not None:
                raise self._moved(self._walker.error)
            data = self._source.read(CHUNK)
            if not data and not self._walker.more:
                try:
                    self._walker.close()
                except CompressedError as error:
                    raise self._moved(error) from None
                return False
            view = memoryview(self._waiting + data)
            found, done = self._walker.parse(view)
            for part in found:
                last = not isinstance(part, zstd.Piece) or part.last
                data = bytes(view[part.start : part.end])
                self._found.append((data, self._base + part.offset, last))
            self._waiting = bytes(view[done:])
        return True

    def _moved(self, error: CompressedError) -> CompressedError:
        return CompressedError(error.message, offset=self._base + error.offset)


class Frames(io.RawIOBase):
    """zstd frames."""

    def __init__(self, source: BinaryIO, offset: int) -> None:
        self._pieces = _Pieces(source, offset)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frame: zstandard.ZstdDecompressionReader | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: WriteableBuffer, /) -> int:
        """What is at hand, at least a byte unless the end is reached. Raises CompressedError."""
        while self._frame is not None or self._pieces.begin():
            if self._frame is None:
                self._frame = self._decompressor.stream_reader(
                    self._pieces,  # type: ignore[arg-type]
                    read_size=2 * CHUNK,
                )
            try:
                count = self._frame.readinto(target)
            except zstandard.ZstdError as error:
                message = f"bad zstd frame: {error}"
                raise CompressedError(message, offset=self._pieces.offset) from None
            if count:
                return count
            self._frame = None
        return 0


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY)


FORMATS = (
    Format("zstd", zstd.MAGIC.to_bytes(4, "little"), Frames),
    Format(
        "gzip", b"\x1f\x8b\x08", lambda source, at: Members(source, at, "gzip", _GzipDecompressor)
    ),
    Format("bzip2", b"BZh", lambda source, at: Members(source, at, "bzip2", bz2.BZ2Decompressor)),
    Format("xz", b"\xfd7zXZ\0", lambda source, at: Members(source, at, "xz", _xz)),
    Format("lzop", lzop.MAGIC, Blocks),
)


def format_of(head: bytes) -> Format | None:
    """How what begins so is compressed."""
    if zstd.is_compressed(head):
        return FORMATS[0]
    return next((format_ for format_ in FORMATS if head.startswith(format_.magic)), None)
