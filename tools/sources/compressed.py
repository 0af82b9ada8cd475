"""Reads the content of compressed files in bounded memory, even if their headers ask for more.

The formats are zstd, gzip, bzip2, xz, lzma and lz4; lzop has its own module. Damaged compressed
data raises CompressedError.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import zstandard

from ...guest.sizes import format_size
from ...protocol.formats import lzop, zstd
from ...protocol.formats.zstd import MAX_WINDOW, CompressedError, FrameWalker
from .lzop import Blocks
from .source import CHUNK, Content

MAX_XZ_MEMORY = 128 << 20
"""The most memory that xz or lzma data may need, in bytes: twice what `xz -9` needs."""
_XZ_NEEDS_MORE = "Memory usage limit exceeded"
"""The message of the lzma module for data that needs more memory than the limit."""
MAX_PADDING = 1 << 20
"""The most zero bytes that are accepted between two concatenated compressed files."""
MAX_LONG_WINDOW = 1 << 31
"""The largest zstd window in bytes, that of `zstd --long=31`. Windows larger than MAX_WINDOW are
only accepted if enough memory is available.
"""


class _Decompressor(Protocol):
    """The common interface of the bz2, lzma and lz4 decompressors for one of several concatenated
    files.
    """

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecompressor:
    """A zlib decompressor for gzip data with the interface of _Decompressor."""

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
        # zlib may hold more output only if it returned as much as it was allowed to.
        self.needs_input = not self._inflate.unconsumed_tail and len(found) < max_length
        return found


@dataclass(frozen=True)
class Format:
    """A compression format. Most formats are detected by `magic`; `is_begun`, if set, replaces that
    check.

    `open` returns the content of a source which is positioned at the given offset.
    """

    name: str
    magic: bytes
    open: Callable[[BinaryIO, int], Content]
    is_begun: Callable[[bytes], bool] | None = None

    def begins(self, head: bytes) -> bool:
        """Return whether data that starts with `head` is in this format."""
        return head.startswith(self.magic) if self.is_begun is None else self.is_begun(head)


class Members(Content):
    """The content of gzip, bzip2, xz, lzma or lz4 data: one file, or several concatenated files,
    possibly with zeros between them.
    """

    def __init__(
        self,
        source: BinaryIO,
        offset: int,
        name: str,
        make: Callable[[], _Decompressor],
        magic: bytes | None,
    ) -> None:
        """Set up the decompressor; `magic` starts each further file, and None means there is only
        one.
        """
        super().__init__(source, offset, name)
        self._magic = magic
        self._make = make
        self._decompressor: _Decompressor | None = make()
        self._input = b""

    def _give(self, view: memoryview) -> int:
        while self._decompressor is not None and len(view):
            if self._decompressor.eof:
                self._next(self._decompressor.unused_data or b"")
            elif found := self._decompress(self._decompressor, len(view)):
                view[: len(found)] = found
                return len(found)
        return 0

    def _decompress(self, decompressor: _Decompressor, most: int) -> bytes:
        data = b""
        if decompressor.needs_input:
            data = self._input or self._read()
            if not data:
                message = f"the stream ends within its {self.name} data"
                raise CompressedError(message, offset=self._offset)
        self._input = b""
        try:
            return decompressor.decompress(data, most)
        except (zlib.error, OSError, ValueError, RuntimeError, lzma.LZMAError) as error:
            message = f"bad {self.name} data: {error}"
            if isinstance(error, lzma.LZMAError) and str(error) == _XZ_NEEDS_MORE:
                limit = format_size(MAX_XZ_MEMORY)
                message = f"{self.name} data that need more than {limit} of memory: "
                message += "decompress them first: xz -dc FILE | vmferry dump -"
            raise CompressedError(message, offset=self._offset - len(data)) from None

    def _next(self, rest: bytes) -> None:
        """Continue with the next concatenated file, or keep the bytes that follow the compressed
        data.
        """
        self.part_start, self._decompressor = self.given, None
        if self._magic is None:
            self.behind = rest
            return
        padding = 0
        while len(found := rest.lstrip(b"\0")) < len(self._magic) and padding < MAX_PADDING:
            data = self._read()
            if not data:
                break
            padding += len(rest) - len(found)
            rest = found + data
        if found.startswith(self._magic):
            self.part_offset = self._offset - len(found)
            self._decompressor = self._make()
            self._input = found
        else:
            self.behind = bytes(padding) + rest


class _Pieces:
    """A source for the zstd decompressor, which gives it the parts of one frame at a time."""

    def __init__(self, source: BinaryIO, offset: int) -> None:
        self._source = source
        self._base = offset
        self._walker = FrameWalker(0)
        self._waiting = b""
        self._found: deque[tuple[bytes, int, bool]] = deque()
        self._ended = True
        self._any = False
        self.offset = offset
        self.read_up_to = offset
        """The offset up to which the source was read."""

    @property
    def next_offset(self) -> int:
        """Return the offset of the part that is read next."""
        return self._found[0][1]

    @property
    def rest(self) -> bytes:
        """Return the bytes that were read past the end of the last frame."""
        return self._waiting

    def begin(self) -> bytes:
        """Go on to the next frame and return its first part, or b"" if there is none."""
        self._ended = not self._has_more()
        return b"" if self._ended else self._found[0][0]

    def read(self, _size: int) -> bytes:
        """Return the next part of the frame, or b"" after its end."""
        if self._ended or not self._has_more():
            return b""
        data, self.offset, self._ended = self._found.popleft()
        return data

    def _has_more(self) -> bool:
        while not self._found:
            error = self._walker.error
            data = b"" if error else self._source.read(CHUNK)
            self.read_up_to += len(data)
            if not data and not self._walker.more:
                try:
                    self._walker.close()
                except CompressedError as cut:
                    error = error or cut
                if error is None or self._is_behind():
                    return False
                raise CompressedError(error.message, offset=self._base + error.offset)
            view = memoryview(self._waiting + data)
            found, done = self._walker.parse(view)
            for part in found:
                last = not isinstance(part, zstd.Piece) or part.last
                data = bytes(view[part.start : part.end])
                self._found.append((data, self._base + part.offset, last))
                self._any = True
            self._waiting = bytes(view[done:])
        return True

    def _is_behind(self) -> bool:
        """Return whether the bytes that were read last are not a frame, but follow one."""
        between = self._any and self._walker.between_headers
        return between and not zstd.is_compressed(self._waiting)


class Frames(Content):
    """The content of concatenated zstd frames."""

    def __init__(self, source: BinaryIO, offset: int) -> None:
        super().__init__(source, offset, "zstd")
        # _Pieces must not refer to this object: the decompressor holds a reference to it which the
        # garbage collector cannot see, so that a cycle would never be freed.
        self._pieces = _Pieces(source, offset)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_LONG_WINDOW)
        self._frame: zstandard.ZstdDecompressionReader | None = None

    def _give(self, view: memoryview) -> int:
        try:
            return self._give_of_frames(view)
        finally:
            self._offset = self._pieces.read_up_to

    def _give_of_frames(self, view: memoryview) -> int:
        while self._frame is not None or self._begin():
            assert self._frame is not None
            try:
                count = self._frame.readinto1(view)
            except zstandard.ZstdError as error:
                message = f"bad zstd frame: {error}"
                raise CompressedError(message, offset=self._pieces.offset) from None
            if count:
                return count
            self._frame = None
        return 0

    def _begin(self) -> bool:
        self.part_start = self.given
        head = self._pieces.begin()
        if not head:
            self.behind = self._pieces.rest
            return False
        self.part_offset = self._pieces.next_offset
        _check_window(head, self._pieces.offset)
        self._frame = self._decompressor.stream_reader(
            self._pieces,  # type: ignore[arg-type]
            read_size=2 * CHUNK,
        )
        return True


def _check_window(head: bytes, offset: int) -> None:
    """Raise CompressedError if a frame that starts with `head` needs more memory than there is."""
    window = zstd.window_size(head)
    if window <= MAX_WINDOW:
        return
    limit = max(MAX_WINDOW, min(MAX_LONG_WINDOW, _available() // 2))
    if window > limit:
        asked, most = format_size(window), format_size(limit)
        message = f"the zstd frame asks for a window of {asked}, the limit is {most}"
        why = "half of the memory that is available" if limit < MAX_LONG_WINDOW else "as of zstd"
        raise CompressedError(f"{message} ({why})", offset=offset)


def _available() -> int:
    """Return the amount of available memory in bytes."""
    # Only this function needs psutil, which is slow to load.
    import psutil  # noqa: PLC0415

    return int(psutil.virtual_memory().available)


def _gzip(source: BinaryIO, offset: int) -> Content:
    return Members(source, offset, "gzip", _GzipDecompressor, _GZIP)


def _bzip2(source: BinaryIO, offset: int) -> Content:
    return Members(source, offset, "bzip2", bz2.BZ2Decompressor, _BZIP2)


def _xz(source: BinaryIO, offset: int) -> Content:
    def make() -> _Decompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY)

    return Members(source, offset, "xz", make, _XZ)


def _lzma(source: BinaryIO, offset: int) -> Content:
    def make() -> _Decompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE, MAX_XZ_MEMORY)

    return Members(source, offset, "lzma", make, None)


def _lz4(source: BinaryIO, offset: int) -> Content:
    import lz4.frame  # type: ignore[import-untyped] # noqa: PLC0415 - only where it is needed

    return Members(source, offset, "lz4", lz4.frame.LZ4FrameDecompressor, _LZ4)


def _begins_as_lzma(head: bytes) -> bool:
    """Return whether the data may be a .lzma file.

    The format has no magic. The check requires the usual properties, a dictionary size that
    encoders use, and a content size that is unknown or plausible.
    """
    if len(head) < _LZMA_HEADER.size:
        return False
    properties, dictionary, size = _LZMA_HEADER.unpack_from(head)
    steps = {1 << bits for bits in range(12, 31)} | {3 << bits for bits in range(11, 30)}
    known = size == (1 << 64) - 1 or size < 1 << 40
    return properties == _LZMA_PROPERTIES and dictionary in steps and known


_GZIP, _BZIP2, _XZ, _LZ4 = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18"
_LZMA_PROPERTIES = 0x5D
_LZMA_HEADER = struct.Struct("<BIQ")
"""The properties, the dictionary size in bytes, and the content size in bytes."""

FORMATS = (
    Format("zstd", zstd.MAGIC.to_bytes(4, "little"), Frames, zstd.is_compressed),
    Format("gzip", _GZIP, _gzip),
    Format("bzip2", _BZIP2, _bzip2),
    Format("xz", _XZ, _xz),
    Format("lzop", lzop.MAGIC, Blocks),
    Format("lz4", _LZ4, _lz4),
    Format("lzma", bytes([_LZMA_PROPERTIES]), _lzma, _begins_as_lzma),
)


def format_of(head: bytes) -> Format | None:
    """Return the compression format of data that starts with `head`, or None if it is not
    compressed.
    """
    return next((format_ for format_ in FORMATS if format_.begins(head)), None)
