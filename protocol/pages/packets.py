"""Build the packets of a multifd channel in bulk; the structures are those of `wire.multifd`."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from ..wire import multifd
from ..wire.layout import dtype_of
from ..wire.multifd import Compression, PacketFlag

Heads = npt.NDArray[Any]
"""Heads of packets (n,), with the fields `header` and `offsets`."""


@cache
def _head(page_size: int) -> np.dtype[Any]:
    room = (multifd.OFFSET, (multifd.pages_of_packet(page_size),))
    return np.dtype([("header", dtype_of(multifd.PacketHeader)), ("offsets", *room)])


def hello(uuid: bytes, channel: int) -> bytes:
    """Return the first bytes of a channel; `uuid` (16 bytes) is that of the source's machine."""
    values = {"magic": multifd.MAGIC, "version": multifd.VERSION, "uuid": uuid, "channel": channel}
    return bytes(multifd.Hello.build(values))


def sync_packet(page_size: int, number: int) -> bytes:
    """Return a packet without pages that is a sync point of its channel."""
    heads = _heads(1, page_size, int(PacketFlag.SYNC))
    heads["header"]["number"] = number
    return heads.tobytes()


def page_heads(
    name: bytes,
    page_size: int,
    offsets: npt.NDArray[np.uint64],
    compression: Compression,
) -> Heads:
    """Return the heads of the packets for pages of one block at `offsets`, in this order.

    Each packet but the last is full. `payload_size` is that of pages that are not compressed;
    `number` is left to the caller.
    """
    heads = _page_heads(name, page_size, offsets, compression)
    header, left = heads["header"], len(offsets) - np.arange(len(heads)) * _most(page_size)
    header["normal"] = np.minimum(left, _most(page_size))
    header["payload_size"] = header["normal"] * page_size
    return heads


def zero_heads(
    name: bytes,
    page_size: int,
    offsets: npt.NDArray[np.uint64],
    compression: Compression,
) -> Heads:
    """Return the packets, which have no payload, for zero pages of one block at `offsets`."""
    heads = _page_heads(name, page_size, offsets, compression)
    left = len(offsets) - np.arange(len(heads)) * _most(page_size)
    heads["header"]["zero"] = np.minimum(left, _most(page_size))
    return heads


def _page_heads(
    name: bytes, page_size: int, offsets: npt.NDArray[np.uint64], compression: Compression
) -> Heads:
    most = _most(page_size)
    heads = _heads(-(-len(offsets) // most), page_size, int(compression))
    heads["header"]["allocated"] = most
    heads["header"]["block"] = name
    flat = np.zeros(len(heads) * most, multifd.OFFSET)
    flat[: len(offsets)] = offsets
    heads["offsets"] = flat.reshape(-1, most)
    return heads


def _heads(count: int, page_size: int, flags: int) -> Heads:
    heads = np.zeros(count, _head(page_size))
    header = heads["header"]
    header["magic"], header["version"], header["flags"] = multifd.MAGIC, multifd.VERSION, flags
    return heads


def _most(page_size: int) -> int:
    return multifd.pages_of_packet(page_size)


class Deflater(Protocol):
    """Compressor for one channel, which keeps the state of its stream."""

    def deflate(self, pages: npt.NDArray[np.uint8]) -> bytes:
        """Return the payload for these pages (n, page_size), which must not change meanwhile."""


def deflater(kind: Compression, level: int) -> Deflater | None:
    """Return a compressor at the beginning of a channel's stream, or None for no compression."""
    if kind == Compression.NONE:
        return None
    return _Zlib(level) if kind == Compression.ZLIB else _Zstd(level)


class _Zlib:
    def __init__(self, level: int) -> None:
        self._stream = zlib.compressobj(level)

    def deflate(self, pages: npt.NDArray[np.uint8]) -> bytes:
        return self._stream.compress(pages.data) + self._stream.flush(zlib.Z_SYNC_FLUSH)


class _Zstd:
    def __init__(self, level: int) -> None:
        self._stream = zstandard.ZstdCompressor(level).compressobj()

    def deflate(self, pages: npt.NDArray[np.uint8]) -> bytes:
        made = self._stream.compress(pages.data)
        return made + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
