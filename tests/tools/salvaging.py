"""Damage of every kind, and a judge of what `extract --partial` makes of it.

The judge knows the sound stream, and so which records the damage touched.
"""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from vmferry.protocol import events
from vmferry.protocol.wire.marks import SectionType
from vmferry.tools.extract.guest import Report, Wanted, extract
from vmferry.tools.rebuild.guest import rebuild
from vmferry.tools.rescue.survival import Survival
from vmferry.tools.sources.stream_events import read_events

from tests.streams import (
    PAGE,
    description,
    device,
    page_run,
    ram_part,
    ram_piece,
    ram_start,
    to_bytes,
)

SIZES = (1, 7, 100, 5000, 70_000)
"""Bytes that are missing, or too many."""


def small_pages() -> bytes:
    """Return a stream of pages of 256 bytes: a short one then has chains that are long enough."""
    size, blocks = 256, (events.RamBlock("ram", 512 * 256), events.RamBlock("rom", 512 * 256))
    seeds = itertools.count()

    def run(index: int, numbers: Iterable[int], fill: int | None = None) -> events.PageRun:
        return page_run(index, numbers, fill, blocks=blocks, page_size=size, seed=next(seeds))

    rounds = [
        [run(0, range(64)), run(0, range(64, 512), 0), run(1, range(512), 0)],
        [run(1, range(20)), run(0, [*range(3, 40), 90])],
        [run(0, range(5, 30)), run(0, range(200, 300), 0)],
    ]
    devices = [device(3, "timer", bytes(range(99))), device(4, "cpu", b"\x7e\0\0\0\x04\0\6" * 30)]
    return to_bytes(
        [
            events.Header(0),
            events.Configuration(0, "pc", size),
            *ram_start(blocks, size),
            *(event for runs in rounds for event in ram_part(*runs)),
            *ram_piece(SectionType.END),
            *devices,
            events.EndOfStream(0),
            description(devices, page_size=size),
        ]
    )


@dataclass(frozen=True)
class Damaged:
    """A stream that was damaged from `start` to `end` (places in the sound one)."""

    data: bytes
    start: int
    end: int


def _hole(size: int) -> Callable[[bytes, random.Random], Damaged]:
    def make(data: bytes, rng: random.Random) -> Damaged:
        at = rng.randrange(max(1, len(data) - size))
        end = min(at + size, len(data))
        return Damaged(data[:at] + bytes(end - at) + data[end:], at, end)

    return make


def _cut(data: bytes, rng: random.Random) -> Damaged:
    at = rng.randrange(len(data))
    return Damaged(data[:at], at, len(data))


def flip(data: bytes, at: int, rng: random.Random) -> Damaged:
    """Change one bit of the byte at this place."""
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return Damaged(bytes(changed), at, at + 1)


def _flip_anywhere(data: bytes, rng: random.Random) -> Damaged:
    return flip(data, rng.randrange(len(data)), rng)


def _lose(data: bytes, rng: random.Random) -> Damaged:
    size = min(rng.choice(SIZES), len(data) // 2)
    at = rng.randrange(len(data) - size)
    return Damaged(data[:at] + data[at + size :], at, at + size)


def _insert(data: bytes, rng: random.Random) -> Damaged:
    at = rng.randrange(len(data))
    return Damaged(data[:at] + rng.randbytes(rng.choice(SIZES)) + data[at:], at, at)


KINDS: dict[str, Callable[[bytes, random.Random], Damaged]] = {
    "cut": _cut,
    "4k": _hole(4 << 10),
    "64k": _hole(64 << 10),
    "1m": _hole(1 << 20),
    "flip": _flip_anywhere,
    "lost": _lose,
    "inserted": _insert,
}
"""Kinds of damage at a random place."""


@dataclass(frozen=True)
class Record:
    """A page in the sound stream."""

    start: int
    end: int
    block: str
    number: int


@dataclass
class Verdict:
    """Fate of pages, each named as (block, number).

    `wrong`: they differ, and nothing said so, though damage did not touch them; `unseen`: so do
    ones that it touched, or where any page is said to be maybe older; `excess`: they are called
    lost, but damage did not touch them.
    """

    survival: Survival
    touched: set[tuple[str, int]]
    wrong: list[tuple[str, int]] = field(default_factory=list)
    unseen: list[tuple[str, int]] = field(default_factory=list)
    excess: list[tuple[str, int]] = field(default_factory=list)


class Sound:
    """A sound stream, and all that is known of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.records = [*_records(data)]
        with ExitStack() as stack:
            guest = rebuild(read_events(io.BytesIO(data)), stack)
            self._sections = guest.devices
            self.devices = [(device.name, device.instance_id) for device in guest.devices]
            self.ram = {
                name: np.fromfile(f"/proc/self/fd/{image.fd}", np.uint8).reshape(-1, PAGE)
                for name, image in guest.images.items()
            }

    def devices_in(self, damaged: Damaged) -> set[tuple[str, int]]:
        """Return the devices whose sections the damage touched."""
        return {
            (section.name, section.instance_id)
            for section in self._sections
            if section.offset <= damaged.end
            and section.payload_offset + len(section.payload) + 5 >= damaged.start
        }

    def judge(self, damaged: Damaged, out: Path) -> Verdict:
        """Extract what there is into a folder, and compare it. Raises StreamError."""
        wanted = Wanted(out, everything=True, partial=True)
        return self.compare(damaged, extract(io.BytesIO(damaged.data), wanted))

    def compare(self, damaged: Damaged, report: Report) -> Verdict:
        """Compare what was extracted."""
        assert report.survival is not None
        start, end = damaged.start, max(damaged.end, damaged.start + 1)
        hit = (record for record in self.records if record.start < end and record.end > start)
        verdict = Verdict(report.survival, {(record.block, record.number) for record in hit})
        fates = {block.block: block for block in report.survival.blocks}
        for made in report.blocks:
            fate = fates[made.block]
            found = np.fromfile(made.file, np.uint8).reshape(-1, PAGE)
            differ = np.flatnonzero((found != self.ram[made.block]).any(axis=1)).tolist()
            lost = _numbers(fate.lost.ranges)
            told = lost | _numbers(fate.stale.ranges) | _numbers(fate.guessed.ranges)
            any_page = report.survival.rounds_lost or not report.survival.ram_ends
            for number in sorted(set(differ) - told):
                page = (made.block, number)
                unseen = page in verdict.touched or any_page
                (verdict.unseen if unseen else verdict.wrong).append(page)
            pages = {(made.block, number) for number in lost} - verdict.touched
            verdict.excess += sorted(pages)
        return verdict


def _numbers(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {page for start, end in ranges for page in range(start // PAGE, end // PAGE)}


def _records(data: bytes) -> Iterable[Record]:
    for run in read_events(io.BytesIO(data)):
        if not isinstance(run, (events.PageRun, events.EncodedRun)):
            continue
        for index, offset in enumerate(run.offsets.tolist()):
            start = run.record_offset(index)
            if isinstance(run, events.EncodedRun):
                end = run.encoding_offset(index) + int(run.sizes[index])
            else:
                name = 0 if run.continued or index else 1 + len(run.block.name)
                body = 1 if run.data is None else PAGE
                head = 0 if isinstance(run, events.MappedRun) else 8 + name
                end = start + head + body
            yield Record(start, end, run.block.name, offset // PAGE)
