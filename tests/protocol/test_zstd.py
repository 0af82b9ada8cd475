"""Frames of a compressed stream: found by their headers, and made without compression."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol.formats import zstd
from vmferry.protocol.formats.stored_frames import join_stored, stored

MAX_CONTENT = 4000
"""Small, so that short contents are too large to wait for."""


def compressed(content: bytes, **options: Any) -> bytes:
    """Return the data as zstd compresses it."""
    return zstandard.ZstdCompressor(level=3, **options).compress(content)


def in_blocks(content: bytes) -> bytes:
    """Return the frame of a program that flushes now and then, and does not know the final size."""
    made = zstandard.ZstdCompressor().compressobj()
    pieces = [content[start : start + 700] for start in range(0, len(content), 700)]
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return b"".join(made.compress(piece) + made.flush(flush) for piece in pieces) + made.flush()


MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "usual": compressed,
    "checksum": lambda content: compressed(content, write_checksum=True),
    "unsaid": lambda content: compressed(content, write_content_size=False),
    "blocks": in_blocks,
    "stored": lambda content: b"".join(stored(memoryview(content))) if content else b"",
}
SKIPPED = zstd.SkippableHeader.build({"magic": 0x184D2A57, "size": 5}) + b"skip!"

contents = st.one_of(
    st.binary(max_size=600),
    st.builds(
        lambda byte, count: byte * count, st.binary(min_size=1, max_size=3), st.integers(0, 3000)
    ),
    st.builds(
        lambda seed, count: random.Random(seed).randbytes(count),
        st.integers(),
        st.integers(0, 9000),
    ),
)
streams = st.lists(st.tuples(st.sampled_from(sorted(MAKERS)), contents), max_size=6)


def walk(stream: bytes, step: int) -> tuple[bytes, list[tuple[type, int]]]:
    """Return content and start of each frame, from a walker fed so many bytes at a time."""
    walker = zstd.FrameWalker(MAX_CONTENT)
    content, waiting, piecewise = b"", b"", None
    found: list[tuple[type, int]] = []
    for start in range(0, len(stream), step):
        waiting += stream[start : start + step]
        parts, done = walker.parse(memoryview(waiting))
        for part in parts:
            data = waiting[part.start : part.end]
            assert stream[part.offset : part.offset + len(data)] == data
            if isinstance(part, zstd.Frame):
                found.append((zstd.Frame, part.offset))
                held = zstandard.ZstdDecompressor().stream_reader(data).read()
                assert len(held) == part.content_size
                content += held
                continue
            if piecewise is None:
                found.append((zstd.Piece, part.offset))
                piecewise = zstandard.ZstdDecompressor().decompressobj()
            content += piecewise.decompress(data)
            piecewise = None if part.last else piecewise
        waiting = waiting[done:]
        assert len(waiting) <= walker.most
    walker.close()
    assert not waiting
    assert piecewise is None
    return content, found


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(1, 500))
def test_finds_every_frame(made: list[tuple[str, bytes]], step: int) -> None:
    """Broken: what follows a frame would be taken for part of it, or lost."""
    frames = [MAKERS[kind](content) + SKIPPED for kind, content in made]
    content, found = walk(b"".join(frames), step)
    assert content == b"".join(content for _, content in made)
    places = [sum(map(len, frames[:number])) for number in range(len(frames))]
    expected = []
    for place, frame in zip(places, frames, strict=True):
        if frame != SKIPPED:
            size = zstandard.frame_content_size(frame)
            expected.append((zstd.Frame if 0 <= size <= MAX_CONTENT else zstd.Piece, place))
    assert found == expected


def test_a_byte_at_a_time() -> None:
    """Broken: a header that comes in two parts would not be found."""
    content = random.Random(1).randbytes(3000) + bytes(3000)
    stream = b"".join(make(content) + SKIPPED for make in MAKERS.values())
    assert walk(stream, 1)[0] == content * len(MAKERS)


@given(st.integers(1, 1 << 20))
def test_stored_headers_are_as_declared(size: int) -> None:
    """Broken: the short cut would lay out another header than the declaration."""
    content = memoryview(bytes(size))
    pieces = stored(content)
    header = io.BytesIO(pieces[0])
    found = zstd.FrameHeader.parse_stream(header)
    assert (found.content_size, found.descriptor.checksum, found.dictionary) == (size, False, None)
    blocks = [zstd.BlockHeader.parse_stream(header)]
    blocks += [zstd.BlockHeader.parse(piece) for piece in pieces[2::2]]
    assert [block.size for block in blocks] == [len(piece) for piece in pieces[1::2]]
    assert {block.type for block in blocks} == {zstd.RAW}
    assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]


@given(st.binary(min_size=1, max_size=600_000))
@settings(max_examples=10, deadline=None)
def test_stored_frames_hold_what_they_were_given(content: bytes) -> None:
    """Broken: `zstd -dc` would refuse a slot that is not worth compressing, or copy it wrongly."""
    pieces = stored(memoryview(content))
    assert zstandard.ZstdDecompressor().decompress(b"".join(pieces)) == content
    assert all(piece.obj is content for piece in pieces[1::2])


@given(st.binary(min_size=3, max_size=3))
def test_block_header_is_as_declared(raw: bytes) -> None:
    """Broken: the walker would see other blocks than the declaration."""
    declared = zstd.BlockHeader.parse(raw)
    start = compressed(b"", write_content_size=False)[:-3]
    walker = zstd.FrameWalker(MAX_CONTENT)
    if declared.type > zstd.COMPRESSED or declared.size > zstd.MAX_BLOCK:
        walker.parse(memoryview(start + raw))
        assert walker.error is not None
        assert walker.error.offset == len(start)
        return
    body = 1 if declared.type == zstd.RLE else declared.size
    found, _ = walker.parse(memoryview(start + raw + bytes(body)))
    assert found[-1].end == len(start) + 3 + body
    assert walker.between_frames == declared.last


@pytest.mark.parametrize(
    ("stream", "offset", "message"),
    [
        (b"\x28\xb5\x2f", 3, "ends within"),
        (compressed(b"abc" * 50)[:-1], None, "ends within"),
        (compressed(b"abc") + b"no frame here", len(compressed(b"abc")), "not a zstd frame"),
        (b"\x28\xb5\x2f\xfd\x21\x07\x05\x01\x00\x00", 0, "needs a dictionary"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x07\x00\x00", 6, "not a block"),
        (b"\x28\xb5\x2f\xfd\x20\x05\xf9\xff\xff", 6, "not a block"),
    ],
)
def test_bad_frames(stream: bytes, offset: int | None, message: str) -> None:
    """Broken: damage would not be told, or in a wrong place."""

    def read() -> None:
        walker = zstd.FrameWalker(MAX_CONTENT)
        walker.parse(memoryview(stream))
        if walker.error is not None:
            raise walker.error
        walker.close()

    with pytest.raises(zstd.CompressedError, match=message) as caught:
        read()
    assert caught.value.offset == (len(stream) if offset is None else offset)
    assert str(caught.value).startswith(f"offset {caught.value.offset:#x} of the compressed stream")


def test_a_frame_that_is_longer_than_it_need_be() -> None:
    """Broken: a frame that says that it is small could make us wait for all memory."""
    header = zstd.FrameHeader.parse(compressed(b"x" * 100))
    head = zstd.FrameHeader.build(header)
    tiny = zstd.BlockHeader.build({"size": 1, "type": zstd.RAW, "last": False}) + b"x"
    walker, waiting, pieces = zstd.FrameWalker(MAX_CONTENT), head, 0
    for _ in range(200):
        waiting += tiny * 100
        found, done = walker.parse(memoryview(waiting))
        pieces += len(found)
        waiting = waiting[done:]
        assert len(waiting) <= walker.most
    assert pieces > 50


@pytest.mark.parametrize(
    "empty", [SKIPPED, compressed(b""), compressed(b"", write_content_size=False)]
)
def test_frames_that_hold_nothing(empty: bytes) -> None:
    """Broken: some megabytes of them would keep a receiver busy for minutes."""
    walker = zstd.FrameWalker(MAX_CONTENT)
    view = memoryview(empty * 2000)
    _, done = walker.parse(view)
    while walker.more:
        done += walker.parse(view[done:])[1]
    assert walker.error is not None
    assert "more than 1000 empty frames" in walker.error.message


def test_one_look_takes_little_time() -> None:
    """Broken: who cancels would wait until all that came at once was walked through."""
    walker = zstd.FrameWalker(MAX_CONTENT)
    frames = memoryview(compressed(b"x") * 50_000)
    found, done = walker.parse(frames)
    assert walker.more
    assert len(found) < 5000
    again, _ = walker.parse(frames[done:])
    assert again[0].offset == done


@given(st.binary(min_size=1, max_size=600_000))
@settings(max_examples=10, deadline=None)
def test_joined_is_what_was_stored(content: bytes) -> None:
    """Broken: a slot that was not worth compressing would arrive with headers between its pages."""
    frame = memoryview(b"".join(stored(memoryview(content))))
    (found,), _ = zstd.FrameWalker(1 << 20).parse(frame)
    assert isinstance(found, zstd.Frame)
    assert found.stored
    out = bytearray(len(content))
    assert join_stored(frame, memoryview(out)) == len(content)
    assert out == content


def test_only_raw_blocks_are_joined() -> None:
    """Broken: compressed bytes, or those that a checksum would refuse, would be taken for RAM."""
    noise = random.Random(5).randbytes(1000)
    for frame in (compressed(bytes(1000)), compressed(noise, write_checksum=True)):
        (found,), _ = zstd.FrameWalker(1 << 20).parse(memoryview(frame))
        assert isinstance(found, zstd.Frame)
        assert not found.stored


@pytest.mark.parametrize(
    ("head", "expected"),
    [(b"\x28\xb5\x2f\xfd", True), (SKIPPED, True), (b"QEVM", False), (b"\x28\xb5\x2f", False)],
)
def test_is_compressed(head: bytes, expected: bool) -> None:
    """Broken: a plain stream would be taken for a compressed one, or the other way round."""
    assert zstd.is_compressed(head) is expected
