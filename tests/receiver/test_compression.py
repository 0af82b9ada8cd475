"""What compressed streams hold reaches the slots, whole and in order; lies do not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from vmferry.protocol import zstd
from vmferry.receiver.compression import Inflater
from vmferry.receiver.slots import DATA_BYTES, DATA_START

THREADS = pytest.mark.parametrize("threads", [0, 1, 3])


class Taken:
    """What came out."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.most = 0

    def take(self, slot: npt.NDArray[np.uint8], used: int) -> None:
        self.data += bytes(slot[DATA_START : DATA_START + used])
        self.most = max(self.most, used)


def inflate(stream: bytes, threads: int, step: int = 100_000) -> Taken:
    """Put a whole compressed stream through."""
    taken = Taken()
    inflater = Inflater(threads, taken.take)
    try:
        for start in range(0, len(stream), step):
            piece = stream[start : start + step]
            inflater.room.data[inflater.waiting : inflater.waiting + len(piece)] = piece
            inflater.filled(len(piece))
        inflater.close()
    finally:
        inflater.stop()
    return taken


def compressed(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(content)


def lying(content: bytes, announced: int) -> bytes:
    """A frame that says that it holds another number of bytes."""
    real = b"".join(zstd.stored(memoryview(content)))
    header = zstd.FrameHeader.parse(real)
    return bytes(zstd.FrameHeader.build({**header, "content_size": announced}) + real[9:])


@THREADS
def test_all_of_it_in_order(threads: int) -> None:
    """Broken: pages would reach RAM in another order than they were sent, or not at all."""
    chance = random.Random(2)
    contents = [chance.randbytes(chance.choice([0, 10, 40_000, 2 << 20])) for _ in range(12)]
    contents += [bytes(DATA_BYTES), bytes(DATA_BYTES + 1), chance.randbytes(3 * DATA_BYTES)]
    chance.shuffle(contents)
    options = [{}, {"write_content_size": False}, {"write_checksum": True}]
    stream = b"".join(compressed(content, **chance.choice(options)) for content in contents)
    taken = inflate(stream, threads)
    assert taken.data == b"".join(contents)
    assert taken.most <= DATA_BYTES


@THREADS
@pytest.mark.parametrize("announced", [0, 1, 999, 1001, 5000, 1 << 20, 1 << 31])
def test_lies_about_the_size(threads: int, announced: int) -> None:
    """Broken: bytes of an older slot, or beyond the slot, would be taken for content."""
    first = compressed(b"fine")
    with pytest.raises(zstd.CompressedError) as caught:
        inflate(first + lying(bytes(1000), announced), threads)
    assert caught.value.offset == len(first)


@THREADS
def test_damaged_frame(threads: int) -> None:
    """Broken: what zstd says of damage would end a process instead of the migration."""
    frame = bytearray(compressed(random.Random(4).randbytes(300) * 100, write_checksum=True))
    frame[-1] ^= 1
    with pytest.raises(zstd.CompressedError, match="bad zstd frame"):
        inflate(bytes(frame), threads)


@THREADS
def test_window_that_is_too_large(threads: int) -> None:
    """Broken: a header of a few bytes would make us take gigabytes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=False)
    made = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(zstd.CompressedError, match="bad zstd frame"):
        inflate(made.compress(b"abc") + made.flush(), threads)


class FullError(Exception):
    """The reader has had enough."""


@THREADS
def test_bomb_comes_in_small_pieces(threads: int) -> None:
    """Broken: a megabyte of frames would be gigabytes of memory before anybody looks at them."""
    block = zstd.BlockHeader.build({"size": zstd.MAX_BLOCK, "type": zstd.RLE, "last": False})
    header: dict[str, Any] = {"magic": zstd.MAGIC, "descriptor": None, "window": 0x40}
    header["descriptor"] = dict.fromkeys(
        ("content_size_flag", "single_segment", "reserved", "checksum", "dictionary_flag"), 0
    )
    header |= {"dictionary": None, "content_size": None}
    bomb = zstd.FrameHeader.build(header) + (block + b"\0") * 200_000
    sizes = []

    def take(slot: npt.NDArray[np.uint8], used: int) -> None:
        assert not slot[DATA_START : DATA_START + used].any()
        sizes.append(used)
        if len(sizes) == 1000:
            raise FullError

    inflater = Inflater(threads, take)
    try:
        inflater.room.data[: len(bomb)] = bomb
        with pytest.raises(FullError):
            inflater.filled(len(bomb))
    finally:
        inflater.stop()
    assert max(sizes) <= DATA_BYTES
