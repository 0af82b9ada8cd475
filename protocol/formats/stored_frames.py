"""Write and read zstd frames whose content is stored as it is, without a compressor.

Source: RFC 8878, "Zstandard Compression and the 'application/zstd' Media Type".
"""

from __future__ import annotations

import io

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
    descriptor = STORED_DESCRIPTOR | (_CHECKSUM_FLAG if checksum else 0)
    header = STORED_HEADER.pack(MAGIC, descriptor, len(content))
    pieces = []
    for start in range(0, len(content), MAX_BLOCK):
        block = content[start : start + MAX_BLOCK]
        last = start + len(block) == len(content)
        header += (len(block) << 3 | RAW << 1 | last).to_bytes(BLOCK_HEADER_SIZE, "little")
        pieces += [memoryview(header), block]
        header = b""
    if checksum:
        pieces.append(memoryview(_content_checksum(content)))
    return pieces


def _content_checksum(*content: memoryview) -> bytes:
    """Return the checksum of the content of a frame: the low half of its XXH64."""
    state = xxhash.xxh64()
    for piece in content:
        state.update(piece)
    return (state.intdigest() & 0xFFFFFFFF).to_bytes(_CHECKSUM_SIZE, "little")


def stored_content(frame: memoryview) -> list[memoryview] | None:
    """Return the content of a whole frame from `stored` with a checksum, as views of the frame.

    Returns None for a frame of another layout. Raises CompressedError if the checksum does not fit.
    """
    first = STORED_HEADER.size
    if len(frame) < first + _CHECKSUM_SIZE:
        return None
    magic, descriptor, size = STORED_HEADER.unpack_from(frame)
    if (magic, descriptor) != (MAGIC, STORED_DESCRIPTOR | _CHECKSUM_FLAG):
        return None
    at, last, content = first, False, []
    while not last and at < len(frame):
        value = int.from_bytes(frame[at : at + BLOCK_HEADER_SIZE], "little")
        start, last = at + BLOCK_HEADER_SIZE, bool(value & 1)
        if value >> 1 & 3 != RAW:
            return None
        at = start + (value >> 3)
        content.append(frame[start:at])
    if not last or at + _CHECKSUM_SIZE != len(frame) or sum(map(len, content)) != size:
        return None
    if frame[at:] != _content_checksum(*content):
        raise CompressedError("the checksum of a frame does not fit", offset=0)
    return content


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
