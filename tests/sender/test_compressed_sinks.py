"""Sink leave as zstd frames, and every frame is whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from mmap import mmap
from multiprocessing import Pipe

import pytest
import zstandard
from vmferry.protocol.formats.zstd import compressed_bound
from vmferry.sender.compressed_sinks import Choice, FramedDirectSink, FramedRingSink
from vmferry.sender.sinks import (
    SLOT_END_OF_ROUND,
    SLOT_STORED,
    DirectSink,
    RingSink,
    pieces_on_wire,
)
from vmferry.transport import adaptive as pipelines
from vmferry.transport.adaptive import NONE, Adaptive
from vmferry.transport.compression import (
    COMPRESSION_COUNTERS,
    Compression,
    CompressionError,
    Framer,
    LinkMeter,
    parse_compression,
)
from vmferry.transport.counters import Counters
from vmferry.transport.ring import Ring, RingReader

SIZE = 300_000


class Sent:
    """Sink of either kind, and what left by them: frames, and how many of them were stored."""

    def __init__(self, method: str, through_ring: bool) -> None:
        compression = parse_compression(method) or Compression(NONE)
        self.counters = Counters.create((*COMPRESSION_COUNTERS, "transferred", "busy_ns"))
        self.limits = Counters.create(("max_bandwidth",))
        self._ours, self._theirs = Pipe()
        self._ring = Ring.create(8, compressed_bound(SIZE))
        self._reader = RingReader(self._ring)
        self.frames: list[bytes] = []
        self.stored = 0
        self.ended = 0
        self.left_from: object = None
        adaptive = Adaptive(
            pipelines.Ring(1, 8) if through_ring else pipelines.Pool(2, 2), compression.levels
        )
        choice = Choice(adaptive, self.counters, LinkMeter(self.counters, self.limits))
        self.slots: FramedRingSink | FramedDirectSink
        if through_ring:
            self.slots = FramedRingSink(RingSink(self._ring, self._ours), SIZE, choice)
        else:
            size = compressed_bound(SIZE)
            direct = DirectSink(size, self._ours, self._send, self._end)
            self.slots = FramedDirectSink(direct, SIZE, choice, 2)

    def publish(self, content: bytes) -> memoryview:
        """Send a slot, and return the room that it was put into."""
        room = self.slots.acquire()
        assert len(room) == SIZE
        room[: len(content)] = content
        self.slots.publish(len(content))
        self._drain()
        return room

    def end(self) -> None:
        """Send the end of the round."""
        self.slots.end_round(3)
        self._drain()
        assert self.ended == 3

    def _drain(self) -> None:
        while (slot := self._reader.try_take()) is not None:
            if slot.kind == SLOT_END_OF_ROUND:
                self._end(slot.tag)
            else:
                self._send(slot.view, slot.kind)
            self._reader.release()

    def _send(self, view: memoryview, kind: int) -> None:
        self.stored += kind == SLOT_STORED
        self.left_from = view.obj
        self.frames.append(b"".join(pieces_on_wire(view, kind)))

    def _end(self, number: int) -> None:
        self.ended = number

    def close(self) -> None:
        for shared in (self.counters, self.limits, self._ring, self._ours, self._theirs):
            shared.close()


@pytest.fixture
def make_slots() -> Iterator[Callable[[str, bool], Sent]]:
    made: list[Sent] = []

    def make(method: str, through_ring: bool) -> Sent:
        made.append(Sent(method, through_ring))
        return made[-1]

    yield make
    for sent in made:
        sent.close()


CONTENTS: list[Callable[[random.Random], bytes]] = [
    lambda chance: chance.randbytes(SIZE),
    lambda chance: chance.randbytes(200) * (SIZE // 200),
    lambda chance: bytes(chance.randrange(1, SIZE)),
]
KINDS = pytest.mark.parametrize("through_ring", [True, False], ids=["ring", "direct"])


@KINDS
@pytest.mark.parametrize("method", ["zstd", "zstd:3", "zstd:19", "adaptive"])
def test_frames_hold_the_slots(
    make_slots: Callable[[str, bool], Sent], method: str, through_ring: bool
) -> None:
    """Broken: `zstd -dc` would not give the stream, or a slot that grows would have no room."""
    chance, sent = random.Random(1), make_slots(method, through_ring)
    contents = [chance.choice(CONTENTS)(chance) for _ in range(40)]
    for content in contents:
        sent.publish(content)
    sent.end()
    for frame, content in zip(sent.frames, contents, strict=True):
        assert zstandard.ZstdDecompressor().decompress(frame) == content
        assert zstandard.frame_content_size(frame) == len(content)
    assert sent.counters["raw_bytes"] == sum(map(len, contents))
    if method != "adaptive":
        assert sent.counters["compressed_bytes"] == sum(map(len, sent.frames))
        assert sent.stored == 0


@KINDS
def test_no_level_is_no_copy(make_slots: Callable[[str, bool], Sent], through_ring: bool) -> None:
    """Broken: what is not compressed would be copied all the same."""
    sent = make_slots("none", through_ring)
    first = sent.publish(bytes(SIZE))
    sent.end()
    assert (sent.stored, len(sent.frames)) == (1, 1)
    # What was filled is what left: the ring's memory, or the buffer that is sent from.
    assert isinstance(first.obj, mmap) if through_ring else first.obj is sent.left_from


def test_threads_keep_the_order(make_slots: Callable[[str, bool], Sent]) -> None:
    """Broken: a page that is sent twice would arrive as it was before (the law of rounds)."""
    sent = make_slots("zstd:9", False)
    chance = random.Random(3)
    # By turns what takes long and what does not.
    contents = [chance.randbytes(SIZE - 1) if n % 2 else bytes([n]) * 10 for n in range(30)]
    for content in contents:
        sent.publish(content)
    sent.end()
    assert [zstandard.ZstdDecompressor().decompress(frame) for frame in sent.frames] == contents


def mixed(chance: random.Random, words: int) -> bytes:
    """Return pages of which half is noise, and the rest words of a list of so many."""
    known = [chance.randbytes(8) for _ in range(words)]
    return b"".join(
        chance.randbytes(2048) + b"".join(chance.choices(known, k=256)) for _ in range(512)
    )


def english(chance: random.Random) -> bytes:
    """Return bytes that match little before them, but are not equally frequent."""
    return bytes(chance.choices(range(26), weights=[2**-n for n in range(26)], k=2 << 20))


@pytest.mark.parametrize(("make", "lean"), [(lambda c: mixed(c, 50), True), (english, False)])
def test_no_time_for_what_gains_nothing(make: Callable[[random.Random], bytes], lean: bool) -> None:
    """Broken: time would go into coding noise, or what can be coded would be left as it is."""
    content = make(random.Random(8))
    framer, usual = Framer(), zstandard.ZstdCompressor(1).compress(content)
    frames = [framer.frame(content, 1) for _ in range(40)]
    assert framer._is_lean == lean
    for frame in frames:
        assert zstandard.ZstdDecompressor().decompress(frame) == content
        assert len(frame) <= len(usual) * 1.01


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
