"""Slots leave as zstd frames, and every frame is whole."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import zstandard
from vmferry.protocol.zstd import compressed_bound, stored
from vmferry.sender.adaptive import NONE
from vmferry.sender.compression import (
    COMPRESSION_COUNTERS,
    CompressedSlots,
    Compression,
    CompressionError,
    parse_compression,
)
from vmferry.transport.counters import Counters

SIZE = 300_000


class Sent:
    """Slots of just enough room, which keep what they are given."""

    def __init__(self, overlap: bool) -> None:
        self.overlap = overlap
        self.frames: list[bytes] = []
        self.stored = 0
        self._buffer = memoryview(bytearray(compressed_bound(SIZE)))

    def acquire(self) -> memoryview:
        return self._buffer

    def publish(self, length: int, *, stored: bool = False) -> None:
        content = self._buffer[:length]
        self.stored += stored
        self.frames.append(b"".join(_stored(content)) if stored else bytes(content))

    def end_round(self, number: int) -> None:
        pass

    def check(self) -> None:
        pass


def _stored(content: memoryview) -> list[memoryview]:
    return stored(content)


CONTENTS: list[Callable[[random.Random], bytes]] = [
    lambda chance: chance.randbytes(SIZE),
    lambda chance: chance.randbytes(200) * (SIZE // 200),
    lambda chance: bytes(chance.randrange(1, SIZE)),
]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("method", ["zstd", "zstd:3", "zstd:19", "adaptive"])
def test_frames_hold_the_slots(method: str, overlap: bool) -> None:
    """Broken: `zstd -dc` would not give the stream, or a slot that grows would have no room."""
    chance, sent = random.Random(1), Sent(overlap)
    compression = parse_compression(method)
    assert compression is not None
    counters = Counters.create(COMPRESSION_COUNTERS)
    slots = CompressedSlots(sent, SIZE, compression, counters)
    contents = [chance.choice(CONTENTS)(chance) for _ in range(40)]
    for content in contents:
        room = slots.acquire()
        assert len(room) == SIZE
        room[: len(content)] = content
        slots.publish(len(content))
    for frame, content in zip(sent.frames, contents, strict=True):
        assert zstandard.ZstdDecompressor().decompress(frame) == content
        assert zstandard.frame_content_size(frame) == len(content)
    assert counters["raw_bytes"] == sum(map(len, contents))
    if method != "adaptive":
        assert counters["compressed_bytes"] == sum(map(len, sent.frames))
        assert sent.stored == 0
    counters.close()


def test_no_level_is_no_copy() -> None:
    """Broken: what is not compressed would be copied all the same."""
    sent, counters = Sent(True), Counters.create(COMPRESSION_COUNTERS)
    slots = CompressedSlots(sent, SIZE, Compression(NONE), counters)
    room = slots.acquire()
    assert room.obj is sent.acquire().obj
    slots.publish(SIZE)
    assert (sent.stored, len(sent.frames)) == (1, 1)
    counters.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("zstd", Compression(1)),
        ("zstd:19", Compression(19)),
        ("adaptive", Compression(None)),
    ],
)
def test_parse(text: str, expected: Compression | None) -> None:
    """Broken: an option would mean something else than the help says."""
    assert parse_compression(text) == expected
    assert expected is None or text in (str(expected), "zstd")


@pytest.mark.parametrize(
    "text", ["", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:-1", "zstd:x", "zstd:²", "adaptive:1"]
)
def test_bad_methods(text: str) -> None:
    """Broken: a wrong option would be a traceback, or another level."""
    with pytest.raises(CompressionError):
        parse_compression(text)
