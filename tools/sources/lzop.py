"""Reads the content of lzop files, block by block."""

from __future__ import annotations

import zlib
from typing import BinaryIO

import construct as c  # type: ignore[import-untyped]
from lzallright import LZOCompressor, LZOError

from ...protocol.errors import UnsupportedError
from ...protocol.formats import lzop
from ...protocol.formats.lzop import Flag
from ...protocol.formats.zstd import CompressedError
from .source import Content


class Blocks(Content):
    """The content of one lzop file in a source positioned at `offset`; verifies the content's
    checksums.
    """

    def __init__(self, source: BinaryIO, offset: int) -> None:
        """Read the header. Raises CompressedError, UnsupportedError."""
        super().__init__(source, offset, "lzop")
        self._left = memoryview(b"")
        self._ended = False
        self._lzo = LZOCompressor()
        self._flags = self._header()

    def _give(self, view: memoryview) -> int:
        while not self._left and not self._ended:
            self._left = memoryview(self._block())
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _take(self, size: int) -> bytes:
        data = self._source.read(size)
        self._offset += len(data)
        if len(data) < size:
            raise CompressedError("the stream ends within its lzop data", offset=self._offset)
        return data

    def _number(self) -> int:
        number: int = lzop.Size.parse(self._take(4))
        return number

    def _header(self) -> Flag:
        start = self._offset
        # The last byte of the fixed part is the length of the file name, which follows it.
        head = self._take(lzop.MAX_HEADER - 255 - 4)
        head += self._take(head[-1] + 4)
        try:
            header = lzop.Header.parse(head)
        except c.ConstructError:
            raise CompressedError("not an lzop header", offset=start) from None
        flags = Flag(header.flags & sum(Flag))
        if header.method not in lzop.METHODS or flags & (Flag.EXTRA_FIELD | Flag.FILTER):
            message = f"lzop method {header.method} with flags {header.flags:#x}"
            raise UnsupportedError(message, offset=start)
        return flags

    def _block(self) -> bytes:
        start = self._offset
        size = self._number()
        if not size:
            self._ended = True
            return b""
        stored = self._number()
        if not 0 < stored <= size <= lzop.MAX_BLOCK:
            message = f"an lzop block of {size} bytes in {stored}"
            raise CompressedError(message, offset=start)
        of_content = self._checksums(Flag.ADLER32_OF_CONTENT, Flag.CRC32_OF_CONTENT)
        kinds = (Flag.ADLER32_OF_DATA, Flag.CRC32_OF_DATA) if stored < size else ()
        of_data = self._checksums(*kinds)
        data = self._take(stored)
        _check(of_data, data, start)
        content = data if stored == size else self._decompress(data, size, start)
        _check(of_content, content, start)
        return content

    def _checksums(self, *kinds: Flag) -> dict[Flag, int]:
        """Read the checksums of these kinds that the file has."""
        return {kind: self._number() for kind in kinds if kind & self._flags}

    def _decompress(self, data: bytes, size: int, start: int) -> bytes:
        try:
            content: bytes = self._lzo.decompress(data, size)
        except LZOError as error:
            # Only the first argument is a message: the next one may be all data decompressed so
            # far.
            raise CompressedError(f"bad lzop data: {error.args[0]}", offset=start) from None
        if len(content) != size:
            message = f"an lzop block holds {len(content)} bytes, not {size}"
            raise CompressedError(message, offset=start)
        return content


def _check(expected: dict[Flag, int], data: bytes, start: int) -> None:
    for kind, checksum in expected.items():
        adler = kind in (Flag.ADLER32_OF_CONTENT, Flag.ADLER32_OF_DATA)
        if (zlib.adler32 if adler else zlib.crc32)(data) != checksum:
            raise CompressedError("a wrong checksum in lzop data", offset=start)
