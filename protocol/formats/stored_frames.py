"""Write and read zstd frames whose content is stored as it is, without a compressor.

Source: RFC 8878, "Zstandard Compression and the 'application/zstd' Media Type".
"""

from __future__ import annotations

import io
from functools import lru_cache

import xxhash

from .zstd import (
    BLOCK_HEADER_SIZE,
    MAGIC,
    MAX_BLOCK,
    MAX_HEADER,
    RAW,
    STORED_DESCRIPTOR,
    STORED_HEADER,
    CompressedError,
    FrameHeader,
)

_CHECKSUM_FLAG = 4
_CHECKSUM_SIZE = 4


def stored(content: memoryview, *, checksum: bool = False) -> list[memoryview]:
    """Return a frame that holds `content` uncompressed, as pieces: headers, and views of `content`.

    `content`: at least one byte, less than 4 GiB; it is not copied. With `checksum`, the last piece
    is a checksum instead of a view.
    """
    pieces = []
    for place, header in enumerate(_headers(len(content), checksum)):
        start = place * MAX_BLOCK
        pieces += [memoryview(header), content[start : start + MAX_BLOCK]]
    if checksum:
        pieces.append(memoryview(_content_checksum(content)))
    return pieces


@lru_cache(maxsize=64)
def _headers(size: int, checksum: bool) -> tuple[bytes, ...]:
    """Return what stands before each block of a frame that holds `size` bytes uncompressed."""
    descriptor = STORED_DESCRIPTOR | (_CHECKSUM_FLAG if checksum else 0)
    header = STORED_HEADER.pack(MAGIC, descriptor, size)
    found = []
    for start in range(0, size, MAX_BLOCK):
        block = min(size - start, MAX_BLOCK)
        last = start + block == size
        header += (block << 3 | RAW << 1 | last).to_bytes(BLOCK_HEADER_SIZE, "little")
        found.append(header)
        header = b""
    return tuple(found)


def _content_checksum(content: memoryview) -> bytes:
    """Return the checksum of the content of a frame: the low half of its XXH64."""
    return (xxhash.xxh64_intdigest(content) & 0xFFFFFFFF).to_bytes(_CHECKSUM_SIZE, "little")


class StoredFrame:
    """A frame that arrives and may be one from `stored`, with a checksum.

    `content`: what its content fills, in one piece. `pieces`: what its bytes have to fill, in
    order.
    """

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self._expected = b"".join(_headers(len(content), True))
        self._heads = bytearray(len(self._expected) + _CHECKSUM_SIZE)
        self.pieces: list[memoryview] = []
        heads, at = memoryview(self._heads), 0
        for place, header in enumerate(_headers(len(content), True)):
            start, end = place * MAX_BLOCK, at + len(header)
            self.pieces += [heads[at:end], content[start : start + MAX_BLOCK]]
            at = end
        self.pieces.append(heads[at:])

    @property
    def size(self) -> int:
        """Return the bytes of the frame."""
        return len(self._heads) + len(self.content)

    def check(self) -> bool:
        """Return whether this is a frame from `stored`; if not, the pieces are all that is known.

        Raises CompressedError if the checksum does not fit.
        """
        if not self._heads.startswith(self._expected):
            return False
        if self.pieces[-1] != _content_checksum(self.content):
            raise CompressedError("the checksum of a frame does not fit", offset=0)
        return True


def stored_size(head: memoryview) -> int | None:
    """Return the content size of a frame that begins with `head` and is laid out like `stored`'s.

    Returns None if it is not. Other encoders begin frames in the same way if the first block is not
    worth compressing.
    """
    first = STORED_HEADER.size + BLOCK_HEADER_SIZE
    if len(head) < first:
        return None
    magic, descriptor, size = STORED_HEADER.unpack_from(head)
    block = min(size, MAX_BLOCK)
    expected = (block << 3 | RAW << 1 | (block == size)).to_bytes(BLOCK_HEADER_SIZE, "little")
    begins = (magic, descriptor) == (MAGIC, STORED_DESCRIPTOR)
    return size if begins and size and head[first - BLOCK_HEADER_SIZE : first] == expected else None


def join_stored(frame: memoryview, out: memoryview) -> int:
    """Copy the content of a `stored` frame into `out`, and return how many bytes.

    The blocks were walked before, so they are inside the frame. Raises ValueError if they hold more
    than `out` has room for.
    """
    position = io.BytesIO(frame[:MAX_HEADER])
    FrameHeader.parse_stream(position)
    at, filled, last = position.tell(), 0, False
    while not last:
        value = int.from_bytes(frame[at : at + BLOCK_HEADER_SIZE], "little")
        at, size, last = at + BLOCK_HEADER_SIZE, value >> 3, bool(value & 1)
        out[filled : filled + size] = frame[at : at + size]
        at, filled = at + size, filled + size
    return filled
