"""`vmferry extract --partial`: what is sound is kept, before and behind damage, and no more."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.section_events import DiskBlock, EndOfDisks
from vmferry.protocol.wire.marks import SectionType
from vmferry.tools.console.failure import CommandError
from vmferry.tools.extract.guest import Wanted, extract

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import harmless
from tests.protocol.kinds import KINDS as STREAM_KINDS
from tests.protocol.kinds import mapped
from tests.streams import (
    BLOCKS,
    PAGE,
    changes,
    closing,
    device,
    opening,
    page_run,
    ram_part,
    read,
    stream_with,
    to_bytes,
    zeros,
    zipped,
)
from tests.tools.salvaging import KINDS, Damaged, Sound, Verdict, flip
from tests.tools.test_containers import save_image
from tests.tools.test_damage import SECONDS, Damage, Field

PART = SectionType.PART
CHANGED = (20, 21, 22, 200)


def _stream() -> bytes:
    """Return two rounds: every page; then some again, and some as what changed in them."""
    every = [page_run(0, range(100)), page_run(0, range(100, 140), 0, continued=True)]
    every += [page_run(0, range(140, 256), continued=True), page_run(1, range(8))]
    again = [page_run(0, range(10, 15), 7), page_run(0, [30, 31, 32], continued=True)]
    changed = changes(0, {number: (number % 100, b"new") for number in CHANGED})
    zip_ = zipped(0, dict.fromkeys(range(210, 220), b"zipped"))
    parts = [ram_part(*every), ram_part(*again), ram_part(changed, zip_)]
    return to_bytes([*opening(), *(event for part in parts for event in part), *closing()])


@pytest.fixture(scope="module")
def sound() -> Sound:
    """Return the stream above."""
    return Sound(_stream())


def _hole(sound: Sound, start: int, size: int) -> Damaged:
    data = sound.data[:start] + bytes(size) + sound.data[start + size :]
    return Damaged(data, start, start + size)


def _record(sound: Sound, number: int, time: int = 0) -> int:
    """Return the offset of a page of the first block in the stream, the first time or again."""
    found = [r.start for r in sound.records if (r.block, r.number) == ("pc.ram", number)]
    return found[time]


def _lost(verdict: Verdict, fate: str = "lost") -> list[tuple[int, int]]:
    """Return the ranges of lost pages of the first block."""
    ranges = getattr(verdict.survival.blocks[0], fate).ranges
    return [(start // PAGE, end // PAGE) for start, end in ranges]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "1m"])
def test_damage_at_random_places(kind: str, sound: Sound, tmp_path: Path) -> None:
    """Broken: damage would cost more than what it touched, or make pages wrong that nobody tells
    of."""
    judged = 0
    for number in range(20):
        damaged = KINDS[kind](sound.data, random.Random(number))
        try:
            verdict = sound.judge(damaged, tmp_path / str(number))
        except StreamError:
            # Nothing can be placed before the list of blocks.
            assert damaged.start < sound.records[0].start
            continue
        judged += 1
        assert not verdict.wrong
        assert len(verdict.unseen) <= (kind == "flip") or kind in ("cut", "64k", "lost")
        # The page before may be damaged, and the next one be unconfirmed.
        assert len(verdict.excess) <= 3, damaged.start
        if verdict.survival.described:
            assert {*sound.devices} - {*verdict.survival.kept} <= sound.devices_in(damaged)
    assert judged > 10


def test_bad_sector(sound: Sound, tmp_path: Path) -> None:
    """Broken: all behind one unreadable sector would be given up, or the page that it began in be
    called sound."""
    start = _record(sound, 50) + 100
    verdict = sound.judge(_hole(sound, start, PAGE), tmp_path / "out")
    assert _lost(verdict) == [(50, 52)]
    assert [(p.offset, p.end) for p in verdict.survival.pieces] == [
        (_record(sound, 51), _record(sound, 52))
    ]
    assert verdict.survival.kept == sound.devices
    assert verdict.survival.lost == []
    assert verdict.wrong == verdict.excess == []


def test_pages_that_are_sent_again(sound: Sound, tmp_path: Path) -> None:
    """Broken: a page whose newer version was lost would pass for the last one."""
    start = _record(sound, 12, 1)
    verdict = sound.judge(_hole(sound, start, 9), tmp_path / "out")
    # 11 comes before the hole, so it may be damaged; 12 was there before.
    assert _lost(verdict) == [(11, 12)]
    assert _lost(verdict, "stale") == [(12, 13)]


def test_change_to_what_was_lost(sound: Sound, tmp_path: Path) -> None:
    """Broken: what changed in a page would be put into one that is not what the source had, and
    the page be called sound."""
    verdict = sound.judge(_hole(sound, _record(sound, 19) + 8, 4 * 4104), tmp_path / "out")
    assert _lost(verdict) == [(19, 24)]
    assert verdict.wrong == []


def test_damaged_encoding_costs_its_page(sound: Sound, tmp_path: Path) -> None:
    """Broken: one page whose encoding is wrong would cost all pages behind it."""
    at = sound.data.index(b"\x14\x03new")
    for place, number in ((at, 20), (sound.data.index(b"\x78\x9c", at) + 5, 210)):
        damaged = Damaged(
            sound.data[:place] + b"\x7f\x7f" + sound.data[place + 2 :], place, place + 2
        )
        verdict = sound.judge(damaged, tmp_path / str(number))
        assert _lost(verdict) == [(number, number + 1)]
        assert verdict.survival.kept == sound.devices


@pytest.mark.parametrize("bit", range(64))
def test_one_bit_of_a_header(bit: int, sound: Sound, tmp_path: Path) -> None:
    """Broken: a bit that all around it tells would cost a page; or an address that stayed inside
    RAM would put the page over another one, and nobody would know."""
    at = _record(sound, 60)
    changed = bytearray(sound.data)
    changed[at + 7 - bit // 8] ^= 1 << bit % 8
    verdict = sound.judge(Damaged(bytes(changed), at, at + 8), tmp_path / "out")
    assert verdict.wrong == []
    assert not verdict.survival.whole
    if verdict.survival.mended:
        assert verdict.survival.mended == [at]
        assert _lost(verdict) == []
    else:
        assert any(start <= 60 < end for start, end in _lost(verdict))
    assert verdict.survival.kept == sound.devices


def test_most_bits_of_a_header_are_mended(sound: Sound, tmp_path: Path) -> None:
    """Broken: no bit would be, or not those of the marks between the parts of RAM."""
    part = sound.data.index(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\2\2\0\0\0\2", _record(sound, 255))
    for number, at in enumerate((part + 7, part + 8, part + 12, part + 13, part + 17)):
        damaged = flip(sound.data, at, random.Random(number))
        verdict = sound.judge(damaged, tmp_path / str(number))
        assert len(verdict.survival.mended) == 1
        assert all(not block.lost.count for block in verdict.survival.blocks)


def test_two_blocks_of_one_length(tmp_path: Path) -> None:
    """Broken: pages behind damage would be put into a block by guess, without a word."""
    blocks = (events.RamBlock("a", 64 * PAGE), events.RamBlock("b", 64 * PAGE))
    found = [page_run(index, range(64), blocks=blocks) for index in (0, 1)]
    sound = Sound(stream_with(*found, blocks=blocks))
    # What is lost may hold the end of one block and the beginning of the other.
    start = next(r.start for r in sound.records if (r.block, r.number) == ("a", 20))
    end = next(r.start for r in sound.records if (r.block, r.number) == ("b", 30))
    data = sound.data[: start + 100] + sound.data[end + 50 :]
    verdict = sound.judge(Damaged(data, start, end + 50), tmp_path / "out")
    assert verdict.wrong == []
    guessed = verdict.survival.blocks[0].guessed
    assert guessed.count + verdict.survival.unplaced > 20


def test_wrong_guess_leaves_nothing_in_silence(tmp_path: Path) -> None:
    """Broken: where pages are put into a block by guess, the one that they may be of would pass for
    up to date."""
    blocks = (events.RamBlock("a", 64 * PAGE), events.RamBlock("b", 64 * PAGE))
    # All of `b`, and where the second round names `a`, are lost: the rest of it looks like `b`.
    found = [page_run(index, range(64), blocks=blocks) for index in (0, 1)]
    found.append(page_run(0, range(10, 40), blocks=blocks, seed=3))
    sound = Sound(stream_with(*found, blocks=blocks))
    start = next(r.start for r in sound.records if (r.block, r.number) == ("a", 50))
    end = next(r.start for r in sound.records[128:] if (r.block, r.number) == ("a", 15))
    verdict = sound.judge(_hole(sound, start, end - start), tmp_path / "out")
    assert not verdict.wrong
    assert verdict.survival.blocks[1].guessed.count == 25
    assert (15, 40) in _lost(verdict, "stale")


def test_damage_behind_pages_of_no_known_block(vmferry: Any) -> None:
    """Broken: where pages fit into several blocks but not into the one before, damage behind them
    would end in a traceback, or be put down to the last block."""
    lengths = {"a": 8192, "b": 8192, "c": 4096, "d": 1}
    blocks = tuple(events.RamBlock(name, count * PAGE) for name, count in lengths.items())
    data = to_bytes([*opening(blocks), *zeros(blocks), *closing()])
    record = data.index(b"\0\x02\x01c") + 5
    # One record of `c` has the number of a page that `c` has not.
    for number, flags, bad in ((10, 0xFFF, 10), (400, 0x22, 5000), (1600, 0xFFF, 1600)):
        at = record + (number - 1) * 9
        assert data[at : at + 8] == (number * PAGE | 0x22).to_bytes(8, "big")
        data = data[:at] + (bad * PAGE | flags).to_bytes(8, "big") + data[at + 8 :]
    harmless("partial", data)
    path = vmferry.write("damaged", data)
    out = str(vmferry.folder / "ram")
    told = vmferry.run("extract", "-f", "--partial", path, "-o", out, "--block", "c")
    assert told.status == 1
    assert "c: lost:" in told.out


def test_memory_that_looks_like_a_stream(tmp_path: Path) -> None:
    """Broken: a guest that keeps a saved stream in its memory would have it read as its own."""
    ram = np.frombuffer(_stream()[2000:].ljust(256 * PAGE, b"\0")[: 256 * PAGE], np.uint8)
    offsets = np.arange(256, dtype=np.uint64) * np.uint64(PAGE)
    run = events.PageRun(0, BLOCKS[0], 0, offsets, ram.reshape(-1, PAGE))
    sound = Sound(stream_with(run, page_run(1, range(8))))
    for kind in ("4k", "64k", "lost", "inserted"):
        for number in range(12):
            damaged = KINDS[kind](sound.data, random.Random(number))
            if damaged.start < sound.records[0].start:
                continue
            verdict = sound.judge(damaged, tmp_path / f"{kind}{number}")
            assert not verdict.wrong
            assert len(verdict.excess) <= 3


def test_disk_that_holds_a_stream(tmp_path: Path) -> None:
    """Broken: behind damage in a disk that moves along, a stream that somebody saved on that disk
    would be read as this guest's memory."""
    saved = _stream()[300:].ljust(1 << 20, b"\0")[: 1 << 20]

    def disks(kind: SectionType, *records: events.Event) -> list[events.Event]:
        section = events.IterativeSection(0, kind, 9, "block", 0, 1)
        return [section, *records, EndOfDisks(0), events.Footer(0, 9)]

    moved = [*disks(SectionType.START), *disks(PART, DiskBlock(0, "disk0", 0, saved))]
    again = page_run(0, range(30, 40), 9)
    end = disks(SectionType.END)
    found = [*opening(), *moved, *ram_part(again), *end, *closing()]
    sound = Sound(to_bytes(found))
    at = sound.data.index(b"disk0")
    verdict = sound.judge(_hole(sound, at - 9, 20), tmp_path / "out")
    assert not verdict.wrong
    assert verdict.survival.blocks[0].lost.count == 256
    assert verdict.survival.kept == sound.devices


def test_forged_devices(tmp_path: Path) -> None:
    """Broken: a section that a guest wrote into a damaged device would pass for another device."""
    forged = to_bytes([device(4, "cpu", b"forged" * 4, instance_id=1)])
    last = [device(3, "screen", forged * 9), device(4, "cpu", b"really" * 4, instance_id=1)]
    pages = ram_part(page_run(0, range(256)))
    sound = Sound(to_bytes([*opening(), *pages, *closing(last)]))
    screen = sound.data.index(b"screen")
    for at, size in ((screen - 2, 1), (sound.data.index(b"really") - 40, 4)):
        damaged = _hole(sound, at, size)
        devices = tmp_path / f"devices{at}"
        report = extract(io.BytesIO(damaged.data), Wanted(None, devices=devices, partial=True))
        assert report.survival is not None
        kept = report.survival.kept
        assert ("cpu", 1) not in kept or any(b"really" in p.read_bytes() for p in devices.iterdir())
        assert not any(p.read_bytes() == b"forged" * 4 for p in devices.iterdir())
        assert report.survival.lost == [("screen", 0)] or at != screen - 2


def test_damaged_description(sound: Sound, tmp_path: Path) -> None:
    """Broken: devices would be lost with what describes them, or their ends be called certain."""
    damaged = flip(sound.data, len(sound.data) - 40, random.Random(2))
    data = damaged.data.replace(b'"devices"', b'"devices', 1)
    verdict = sound.judge(Damaged(data, damaged.start, damaged.end), tmp_path / "out")
    assert sorted(verdict.survival.kept) == sorted(sound.devices)
    assert not verdict.survival.described
    assert _lost(verdict) == []


def test_mapped_ram_cut_in_half(vmferry: Any, tmp_path: Path) -> None:
    """Broken: half a file would give nothing, though its bitmaps and half its pages are there."""
    data, ram = mapped({"pc.ram": list(range(100, 500)), "rom": [3]}, count=512)
    found = [event for event in _events(data) if isinstance(event, events.RamBlocks)]
    place = found[0].blocks[0].mapped
    assert place is not None
    cut = place.pages_offset + 300 * PAGE + 100
    path, out = vmferry.write("cut", data[:cut]), tmp_path / "ram"
    ran = vmferry.call("extract", "-f", path, "--partial", "--json", "-o", str(out))
    assert ran.exit_code == 1
    report = json.loads(ran.stdout)["survival"]
    assert out.read_bytes()[: 300 * PAGE] == ram["pc.ram"][: 300 * PAGE]
    assert report["blocks"][0]["lost"] == {"pages": 200, "ranges": [[300 * PAGE, 500 * PAGE]]}
    assert report["unlisted"] == 512 * PAGE
    assert "kept: 312 of 512 pages" in ran.stderr
    # The bitmap itself is cut: what it does not tell of is lost.
    data = data[: place.bitmap_offset + 8]
    ran = vmferry.call("extract", "-f", vmferry.write("cut", data), "--partial", "-o", str(out))
    assert "pc.ram: lost: 448 pages, at 0x40000-0x200000" in ran.stdout


def _events(data: bytes) -> list[Any]:
    return read(data)


def test_shifted_mapped_ram(vmferry: Any, tmp_path: Path) -> None:
    """Broken: pages that all stand in a wrong place would be called sound."""
    data, _ = mapped({"pc.ram": list(range(512)), "rom": [3]}, count=512)
    half = len(data) // 3
    path = vmferry.write("shifted", data[:half] + data[half + 100 :])
    ran = vmferry.call("extract", "-f", path, "--partial", "-o", str(tmp_path / "ram"))
    assert ran.exit_code == 1
    assert "pc.ram: may belong elsewhere: 512 pages" in ran.stdout


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress, save_image])
def test_in_containers(pack: Any, sound: Sound, vmferry: Any, tmp_path: Path) -> None:
    """Broken: damage in what a stream stands in, or behind it, would cost what comes before it."""
    out = tmp_path / "ram"
    inner = pack(_hole(sound, _record(sound, 50) + 100, PAGE).data)
    ran = vmferry.call("extract", "-f", vmferry.write("inner", inner), "--partial", "-o", str(out))
    assert "pc.ram: lost: 2 pages, at 0x32000-0x34000" in ran.stdout
    packed = pack(sound.data)
    cut = vmferry.write("cut", packed[: len(packed) * 2 // 3])
    ran = vmferry.call("extract", "-f", cut, "--partial", "-o", str(out))
    assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1)
    found = np.fromfile(out, np.uint8).reshape(-1, PAGE)
    assert np.array_equal(found[40:60], sound.ram["pc.ram"][40:60])
    assert "RAM was not read up to its end" in ran.stdout


def test_what_is_said(sound: Sound, vmferry: Any, tmp_path: Path) -> None:
    """Broken: the command would end well though something was lost, or not say what."""
    damaged = _hole(sound, _record(sound, 50) + 100, PAGE)
    path, out = vmferry.write("bad", damaged.data), str(tmp_path / "ram")
    ran = vmferry.call("extract", "-f", path, "--partial", "-o", out)
    assert ran.exit_code == 1
    assert ran.stdout.splitlines()[1:] == [
        f"lost 4.0 KiB of the stream, at {_record(sound, 51):#x}-{_record(sound, 52):#x}: "
        "0x0000000000000000 is no record",
        "pc.ram: lost: 2 pages, at 0x32000-0x34000",
    ]
    assert ran.stderr.endswith("; kept: 254 of 256 pages, 4 of 4 devices\n")
    assert ran.stderr.startswith(f"vmferry: {path}: offset {_record(sound, 51):#x} ")
    ran = vmferry.call("extract", "-f", path, "--partial", "--json", "-o", out)
    found = json.loads(ran.stdout)["survival"]
    assert found["blocks"][0]["lost"] == {"pages": 2, "ranges": [[50 * PAGE, 52 * PAGE]]}
    assert [one["name"] for one in found["devices"]["kept"]][:2] == ["early", "cpu"]
    whole = vmferry.write("whole", sound.data)
    ran = vmferry.call("extract", "-f", whole, "--partial", "-o", out)
    assert (ran.exit_code, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", STREAM_KINDS)
def test_every_kind_of_stream(name: str, tmp_path: Path) -> None:
    """Broken: damage in a section beside RAM, or in a stream that tells little of itself, would end
    in a traceback or in pages of something else."""
    data = to_bytes(STREAM_KINDS[name])
    for number in range(40):
        rng = random.Random(number)
        damaged = [*KINDS.values()][number % len(KINDS)](data, rng)
        wanted = Wanted(tmp_path / str(number), everything=True, partial=True)
        try:
            report = extract(io.BytesIO(damaged.data), wanted)
        except (StreamError, CommandError):
            continue
        assert report.survival is not None


@pytest.mark.parametrize("seed", range(len(SEEDS["partial"])))
def test_damaged_variants(seed: int) -> None:
    """Broken: some damage would end in a traceback, pages outside their block, or no end."""
    stream = SEEDS["partial"][seed]
    damage = Damage(stream, [Field(at, 4) for at in range(0, min(len(stream), 400), 3)])
    for number in range(60):
        data = damage.variant(number)
        if number % 2:
            rng = random.Random(number)
            data = [*KINDS.values()][number % len(KINDS)](data or stream, rng).data
        start = time.monotonic()
        harmless("partial", data)
        assert time.monotonic() - start < SECONDS, number
