"""`extract --partial` of damaged streams of a real QEMU: nothing wrong, and little lost."""

from __future__ import annotations

import io
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from vmferry.protocol.errors import StreamError
from vmferry.tools.extract.guest import Wanted, extract

from tests.qemu.machine import MANY_PAGES, MIB, Machine, in_fourth_round
from tests.tools.salvaging import KINDS, Damaged, Sound, Verdict, flip

PLACES = 3
"""Number of places for each kind of damage in each stream."""
EXCESS = 3
"""Pages that may be lost beside those that one damage touches."""


def _save(version: str, folder: Path, *options: str) -> bytes:
    """Return a guest at rest whose memory has a content of its own."""
    stream, content = folder / "stream", folder / "content"
    content.write_bytes(b"".join(struct.pack("<I", n + 1) * 1024 for n in range(1500)))
    load = f"loader,file={content},addr=0x200000,force-raw=on"
    machine = Machine(version, folder / "machine", "-S", "-device", load, *options)
    try:
        machine.migrate(f"exec:cat > {stream}")
    finally:
        machine.stop()
    return stream.read_bytes()


def _live(version: str, folder: Path, *capabilities: str) -> bytes:
    """Return a guest that writes while it moves, in several rounds."""
    stream = folder / "stream"
    machine = Machine(version, folder / "machine", code=MANY_PAGES)
    try:
        machine.wait_for_beats()
        machine.enable(*capabilities)
        machine.migrate_until(f"exec:cat > {stream}", in_fourth_round, 12 * MIB)
    finally:
        machine.stop()
    return stream.read_bytes()


def _small(version: str, folder: Path) -> bytes:
    stream = folder / "stream"
    machine = Machine(version, folder / "machine", "-S")
    try:
        machine.migrate(f"exec:cat > {stream}")
    finally:
        machine.stop()
    assert stream.stat().st_size < 4 << 20
    return stream.read_bytes()


STREAMS: dict[str, Callable[[Path], bytes]] = {
    "7.2, above 4 MiB": lambda folder: _save("7.2", folder),
    "10.0, above 4 MiB": lambda folder: _save("10", folder),
    "below 4 MiB": lambda folder: _small("7.2", folder),
    "xbzrle": lambda folder: _live("7.2", folder, "xbzrle"),
    "live": lambda folder: _live("10", folder),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_damage(stream: str, tmp_path: Path) -> None:
    """Broken: of a guest that somebody wants back, more would be lost than was damaged, or pages
    be wrong that nobody tells of."""
    sound = Sound(STREAMS[stream](tmp_path))
    for kind in KINDS:
        for number in range(PLACES):
            damaged = KINDS[kind](sound.data, random.Random(number))
            if damaged.start >= sound.records[0].start:
                verdict = _judge(sound, damaged, tmp_path / f"{kind}{number}")
                assert kind != "flip" or len(verdict.unseen) <= 1
    mended = 0
    for number in range(4 * PLACES):
        rng = random.Random(number)
        header = rng.choice(sound.records).start + rng.randrange(8)
        verdict = _judge(sound, flip(sound.data, header, rng), tmp_path / str(number))
        mended += bool(verdict.survival.mended)
    assert mended > PLACES


def _judge(sound: Sound, damaged: Damaged, out: Path) -> Verdict:
    verdict = sound.judge(damaged, out)
    shutil.rmtree(out)
    assert not verdict.wrong
    assert len(verdict.excess) <= EXCESS
    if verdict.survival.described:
        lost = {*sound.devices} - {*verdict.survival.kept}
        assert lost <= sound.devices_in(damaged)
    return verdict


def test_mapped_ram(tmp_path: Path) -> None:
    """Broken: a mapped-ram file that was cut would give nothing, or call pages sound that it does
    not have."""
    stream = tmp_path / "stream"
    machine = Machine("10", tmp_path / "machine", code=MANY_PAGES)
    try:
        machine.wait_for_beats()
        machine.ask("stop")
        machine.enable("mapped-ram")
        machine.migrate(f"file:{stream}")
    finally:
        machine.stop()
    sound = Sound(stream.read_bytes())
    judged = 0
    for kind in ("cut", "4k", "64k", "flip"):
        for number in range(PLACES):
            damaged = KINDS[kind](sound.data, random.Random(number))
            wanted = Wanted(tmp_path / f"{kind}{number}", everything=True, partial=True)
            try:
                report = extract(io.BytesIO(damaged.data), wanted)
            except StreamError:
                assert damaged.start < 1 << 12
                continue
            judged += 1
            verdict = sound.compare(damaged, report)
            assert not verdict.wrong
            assert not verdict.excess
    assert judged > 3 * PLACES
