"""Decompress the payloads of a multifd channel, each of which is a piece of one stream.

A payload that makes more bytes than expected is noticed before it uses much memory.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt
import zstandard

from ..formats.zstd import MAX_WINDOW
from ..wire.multifd import Compression


class PayloadError(ValueError):
    """A payload that does not make the expected bytes; the message is one line."""


class Inflater(Protocol):
    """Decompressor for one channel, which keeps the state of its stream."""

    def inflate(self, payload: memoryview, size: int) -> npt.NDArray[np.uint8]:
        """Return the `size` bytes (size,) that the payload makes. Raises PayloadError.

        The result is valid until the next call.
        """


def inflater(kind: Compression) -> Inflater:
    """Return a decompressor at the beginning of a channel's stream."""
    return _Zlib() if kind == Compression.ZLIB else _Zstd()


def _check(made: int, size: int) -> None:
    if made != size:
        raise PayloadError(f"it makes {'fewer' if made < size else 'more'} than {size} bytes")


class _Zlib:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj()

    def inflate(self, payload: memoryview, size: int) -> npt.NDArray[np.uint8]:
        try:
            # One byte more than expected, so that a decompression bomb is noticed before it grows.
            data = self._stream.decompress(payload, size + 1)
        except zlib.error as error:
            raise PayloadError(str(error)) from None
        _check(len(data), size)
        return np.frombuffer(data, np.uint8)


class _AtEndOfPayload(Exception):  # noqa: N818 - not an error: the next payload has not arrived
    """The decompressor asks for more bytes than the payload has."""


class _Payload:
    """A payload as a file, whose end is not the end of the compressed stream."""

    def __init__(self) -> None:
        self.rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        if not self.rest:
            raise _AtEndOfPayload
        piece, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return piece


class _Zstd:
    def __init__(self) -> None:
        self._payload = _Payload()
        made = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._stream = made.stream_reader(cast(BinaryIO, self._payload))
        self._data = np.empty(0, np.uint8)

    def inflate(self, payload: memoryview, size: int) -> npt.NDArray[np.uint8]:
        self._payload.rest = payload
        # One byte more than expected, so that an excess is noticed. While there is room in the
        # array, the decompressor holds no output back. New arrays would cost a page fault a page.
        if len(self._data) <= size:
            self._data = np.empty(size + 1, np.uint8)
        data, filled = self._data[: size + 1], 0
        try:
            while filled <= size:
                count = self._stream.readinto1(data[filled:].data)
                if not count:
                    raise PayloadError("its stream ends")
                filled += count
        except _AtEndOfPayload:
            pass
        except zstandard.ZstdError as error:
            raise PayloadError(str(error)) from None
        _check(filled, size)
        return data[:size]
