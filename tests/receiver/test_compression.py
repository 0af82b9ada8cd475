"""Test that the content of compressed streams reaches the slots whole and in order, and that false
sizes do not.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from vmferry.protocol.formats import zstd
from vmferry.protocol.formats.stored_frames import stored as stored_pieces
from vmferry.receiver.compression import Inflater
from vmferry.receiver.slots import DATA_BYTES, DATA_START

THREADS = pytest.mark.parametrize("threads", [0, 1, 3])


class Taken:
    """Content that was decompressed from a stream of `length` bytes."""

    def __init__(self, length: int = 1 << 40) -> None:
        self.data = bytearray()
        self.most = 0
        self._length = length

    def take(self, slot: npt.NDArray[np.uint8], used: int) -> bool:
        self.data += bytes(slot[DATA_START : DATA_START + used])
        self.most = max(self.most, used)
        return len(self.data) < self._length


def inflate(stream: bytes, threads: int, step: int = 100_000, length: int = 1 << 40) -> Taken:
    """Put a whole compressed stream through, which holds one of `length` bytes."""
    taken = Taken(length)
    inflater = Inflater(threads, taken.take)
    try:
        for start in range(0, len(stream), step):
            put(inflater, stream[start : start + step])
            if inflater.ended:
                return taken
        inflater.close()
    finally:
        inflater.stop()
    return taken


def put(inflater: Inflater, piece: bytes) -> None:
    """Put the next piece of the compressed stream."""
    inflater.space[: len(piece)] = piece
    inflater.filled(len(piece))


def compressed(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(content)


def stored(content: bytes) -> bytes:
    return b"".join(stored_pieces(memoryview(content)))


def lying(make: Callable[[bytes], bytes], content: bytes, announced: int) -> bytes:
    """Return a frame whose header gives another number of bytes than it has."""
    real = io.BytesIO(make(content))
    header = zstd.FrameHeader.parse_stream(real)
    header.descriptor.content_size_flag = 2
    return bytes(zstd.FrameHeader.build({**header, "content_size": announced})) + real.read()


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
@pytest.mark.parametrize("make", [stored, compressed])
def test_lies_about_the_size(threads: int, announced: int, make: Callable[[bytes], bytes]) -> None:
    """Broken: bytes of an older slot, or beyond the slot, would be taken for content."""
    first = compressed(b"fine")
    with pytest.raises(zstd.CompressedError) as caught:
        inflate(first + lying(make, bytes(1000), announced), threads)
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

    def take(slot: npt.NDArray[np.uint8], used: int) -> bool:
        assert not slot[DATA_START : DATA_START + used].any()
        sizes.append(used)
        if len(sizes) == 1000:
            raise FullError
        return True

    inflater = Inflater(threads, take)
    try:
        inflater.space[: len(bomb)] = bomb
        with pytest.raises(FullError):
            inflater.filled(len(bomb))
    finally:
        inflater.stop()
    assert max(sizes) <= DATA_BYTES


@THREADS
@pytest.mark.parametrize("step", [1 << 20, 1])
@pytest.mark.parametrize("behind", [b"no frame", compressed(b"more"), b"\x28\xb5\x2f\xfd"])
def test_what_follows_the_stream_is_not_ours(threads: int, step: int, behind: bytes) -> None:
    """Broken: whether a good migration succeeds would depend on what is read at once."""
    for options in ({}, {"write_content_size": False}):
        stream = compressed(bytes(5000), **options) + behind
        assert inflate(stream, threads, step, length=5000).data == bytes(5000)


@THREADS
@pytest.mark.parametrize("step", [1 << 20, 1])
def test_a_stream_ends_with_its_frame(threads: int, step: int) -> None:
    """Broken: a guest would be resumed before its bytes were known to be whole (law 4)."""
    content = random.Random(6).randbytes(5000)
    frame = compressed(content, write_content_size=False, write_checksum=True)
    for cut in (1, 4, 6):
        with pytest.raises(zstd.CompressedError, match="ends within a zstd frame"):
            inflate(frame[:-cut], threads, step, length=5000)
    wrong = frame[:-1] + bytes([frame[-1] ^ 1])
    with pytest.raises(zstd.CompressedError, match="bad zstd frame"):
        inflate(wrong, threads, step, length=5000)


@THREADS
def test_a_frame_that_goes_on_behind_the_stream(threads: int) -> None:
    """Broken: zeros without end behind a good stream would be decompressed before it counts."""
    frame = compressed(bytes(50 << 20), write_content_size=False)
    with pytest.raises(zstd.CompressedError, match="goes on behind the end of the stream"):
        inflate(frame, threads, length=5000)


class Late:
    """A pool that does everything when the result is asked for."""

    def submit(self, function: Callable[..., int], *arguments: Any) -> Any:
        return type("", (), {"result": lambda _: function(*arguments)})()

    def shutdown(self, **_: bool) -> None:
        pass


def test_threads_have_their_own_bytes() -> None:
    """Broken: a thread that comes late would decompress the bytes of another frame."""
    taken = Taken()
    inflater = Inflater(3, taken.take)
    inflater.stop()
    inflater._pool = Late()  # type: ignore[assignment]
    contents = [bytes([number]) * 2000 for number in range(5)]
    for content in contents:
        put(inflater, compressed(content))
    inflater.close()
    assert taken.data == b"".join(contents)


def in_other_blocks(content: bytes) -> bytes:
    """Return a frame that begins as a stored one does, and is laid out otherwise."""
    head = stored(content)[:9]
    for start in range(0, len(content), 60_000):
        block = content[start : start + 60_000]
        last = start + 60_000 >= len(content)
        head += zstd.BlockHeader.build({"size": len(block), "type": zstd.RAW, "last": last})
        head += block
    return head


def inflate_at_once(stream: bytes, step: int) -> tuple[Taken, int]:
    """Decompress as the transport process does; return how many frames were read straight into a
    slot.
    """
    taken, source, straight = Taken(), io.BytesIO(stream), 0
    inflater = Inflater(0, taken.take)
    while used := source.readinto(inflater.space[:step]):
        inflater.filled(used)
        while (frame := inflater.begin_stored()) is not None:
            straight += 1
            while frame.awaited and (count := source.readinto(frame.missing[0][:step])):
                frame.filled(count)
            inflater.end_stored(frame)
            if not frame.good:
                break
            inflater.filled(source.readinto(inflater.space[:12]))
    inflater.close()
    return taken, straight


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_stored_frames_are_read_straight(step: int) -> None:
    """Broken: what was not worth compressing would be copied, or come out of order."""
    chance = random.Random(9)
    makers = [stored, stored, compressed, in_other_blocks]
    size = 300_000 if step >= 1000 else 200
    made = [(chance.choice(makers), chance.randbytes(chance.randint(1, size))) for _ in range(30)]
    stream = b"".join(make(content) for make, content in made)
    taken, straight = inflate_at_once(stream, step)
    assert taken.data == b"".join(content for _, content in made)
    assert straight >= 5


@pytest.mark.parametrize("noise", [0, 130_000, 140_000, 270_000])
def test_only_stored_frames_are_waited_for(noise: int) -> None:
    """Broken: a frame that begins like a stored one, and is shorter, would be waited for for ever.

    What zstd makes of noise are raw blocks, and its header is the same.
    """
    content = random.Random(10).randbytes(noise) + bytes(300_000)
    frame = compressed(content)
    taken = Taken()
    inflater = Inflater(0, taken.take)
    put(inflater, frame[:12])
    found = inflater.begin_stored()
    if found is not None:
        rest = io.BytesIO(frame[12:])
        while found.awaited:
            count = rest.readinto(found.missing[0])
            assert count, "it waits for more than there is"
            found.filled(count)
        inflater.end_stored(found)
        put(inflater, rest.read())
    else:
        put(inflater, frame[12:])
    inflater.close()
    assert taken.data == content


def test_a_stored_frame_that_ends_early() -> None:
    """Broken: old bytes of the slot would be taken for what did not come."""
    stream = stored(bytes(300_000))
    for cut in (1, 131_000, 131_080, 299_000):
        with pytest.raises(zstd.CompressedError, match="ends within a zstd frame") as caught:
            inflate_at_once(stream[:-cut], 5000)
        assert caught.value.offset == len(stream) - cut


@pytest.mark.parametrize("place", [9, 12 + (128 << 10)])
def test_a_stored_frame_with_a_damaged_header(place: int) -> None:
    """Broken: a block's header would not be looked at."""
    stream = bytearray(stored(bytes(300_000)))
    stream[place] ^= 0x06
    with pytest.raises(zstd.CompressedError):
        inflate_at_once(bytes(stream), 5000)
