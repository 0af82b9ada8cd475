"""The synthetic guest: it writes as told, and finds every kind of damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Pipe
from typing import Any

import numpy as np
import pytest
from vmferry.guest import synthetic_process
from vmferry.guest.errors import GuestError
from vmferry.guest.mapping import is_hole, map_block
from vmferry.guest.open import open_guest
from vmferry.guest.parts import BlockLayout, DeviceState, Machine
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_memory import ROM_SIZE, BadPage, Memory
from vmferry.guest.synthetic_options import parse_options
from vmferry.guest.synthetic_state import pack, unpack
from vmferry.guest.zero import zero_mask
from vmferry.protocol.wire.kept import whole
from vmferry.transport.process import send_message
from zstandard import ZstdCompressor

from tests.patience import PATIENCE, wait_until

MakeGuest = Callable[[str], SyntheticGuest]
BUSY = "4M,dirty-rate=32M,hot=50%,zero=25%"


def copy_ram(source: SyntheticGuest, target: SyntheticGuest) -> None:
    """Copy RAM as a migration does, without one."""
    target.prepare(source.machine, [BlockLayout(b.name, b.length, 4096) for b in source.blocks])
    for ours, theirs in zip(source.blocks, target.blocks, strict=True):
        map_block(theirs)[:] = map_block(ours)


def wait_written(guest: SyntheticGuest, pages: int) -> None:
    """Return when the guest has written so many more pages."""
    written = guest.counter() + pages
    wait_until(lambda: guest.counter() >= written)


def test_writes_only_while_it_runs(make_guest: MakeGuest) -> None:
    """Broken: a last round on a paused guest would still miss writes (law 3)."""
    guest = make_guest(BUSY)
    before = guest.page_digests()
    wait_written(guest, 600)
    guest.pause()
    paused = guest.digest()
    assert not guest.running
    changed = (guest.page_digests() != before).any(axis=1)
    assert 0 < changed.sum() <= 512
    time.sleep(0.1)
    assert guest.digest() == paused
    assert guest.verify() == []
    guest.resume()
    wait_written(guest, 1)
    guest.pause()
    assert guest.digest() != paused
    assert guest.verify() == []


class Clock:
    """Stands for the module `time`, and passes as the test wants."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the time in seconds that the test has set."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of a guest in this process."""
    clock = Clock()
    monkeypatch.setattr(synthetic_process, "time", clock)
    return clock


def writing(clock: Clock) -> Callable[[float, int], int]:
    """Return how many pages a guest of 4 MiB/s writes in this time, slowed down by so many %."""
    ours, theirs = Pipe()
    ram, rom = (np.zeros(size, np.uint8) for size in (1 << 20, ROM_SIZE))
    memory = Memory(ram, rom, 1, "random")
    memory.fill(0.25)
    options = parse_options("1M,dirty-rate=4M,hot=25%")
    process = synthetic_process.Process(theirs, (ram, rom), memory, options, incoming=False)
    process.resume()

    def written(seconds: float, percentage: int = 0) -> int:
        before = process._counter
        process._set_throttle(percentage)
        for _ in range(round(seconds / 0.01)):
            clock.now += 0.01
            process._write_due()
        assert not ours.poll()
        return process._counter - before

    return written


def test_rate_and_throttle(clock: Clock) -> None:
    """Broken: a benchmark would say one dirty rate and do another, and auto-converge do nothing."""
    written = writing(clock)
    assert written(2.0, 0) == pytest.approx(2048, abs=20)
    assert written(2.0, 90) == pytest.approx(205, abs=10)
    assert written(2.0, 0) == pytest.approx(2048, abs=20)


def test_what_a_busy_machine_missed_is_skipped(clock: Clock) -> None:
    """Broken: a guest that could not run for a minute would write for a minute without pause."""
    written = writing(clock)
    written(1.0, 0)
    clock.now += 60
    assert written(0.01, 0) <= 120


def test_zero_fraction_and_blocks(make_guest: MakeGuest) -> None:
    """Broken: zero pages and read-only blocks would never be tried."""
    guest = make_guest("4M,zero=25%")
    assert [block.name for block in guest.blocks] == ["synthetic.ram", "synthetic.rom"]
    ram = map_block(guest.blocks[0]).reshape(-1, 4096)
    assert guest.counter() == 0
    assert zero_mask(ram).sum() == 256


def test_description_tells_the_length(make_guest: MakeGuest) -> None:
    """Broken: nobody could tell where the device's payload ends."""
    guest = make_guest(BUSY)
    state = guest.save_devices()
    (section,) = state.sections
    assert state.description is not None
    (device,) = json.loads(state.description)["devices"]
    assert device["name"] == section.name
    assert device["fields"][0]["size"] == len(section.payload)


def test_moves_on_elsewhere(make_guest: MakeGuest) -> None:
    """Broken: a guest that arrived whole would complain, or start again from nothing."""
    source, target = make_guest(BUSY), make_guest("")
    wait_written(source, 1)
    source.pause()
    copy_ram(source, target)
    target.load_devices(source.machine, source.save_devices())
    target.invalidate_caches()
    assert target.digest() == source.digest()
    assert not target.running
    target.complete(running=True)
    wait_written(target, 1)
    target.pause()
    assert target.counter() > source.counter()
    assert target.verify() == []


def test_every_damage_is_found(make_guest: MakeGuest) -> None:
    """Broken: a migration that corrupts a guest would pass."""
    guest = make_guest("1M,zero=25%")
    guest.pause()
    ram = map_block(guest.blocks[0]).reshape(-1, 4096)
    zero = zero_mask(ram)
    torn, stale, lost, foreign, other = np.flatnonzero(~zero)[:5].tolist()
    was_zero = int(np.flatnonzero(zero)[0])
    old = ram[stale].copy()
    state = whole(guest.save_devices().sections[0].payload)
    # One more write is expected of a page than it got.
    found = unpack(state, len(ram))
    found.table[stale] += 1
    target = make_guest("")
    copy_ram(guest, target)
    section = replace(guest.save_devices().sections[0], payload=pack(found))
    target.load_devices(guest.machine, replace(guest.save_devices(), sections=(section,)))
    ram = map_block(target.blocks[0]).reshape(-1, 4096)
    ram[torn, 2000:] = ram[other, 2000:]
    ram[lost] = 0
    ram[foreign] = ram[other]
    ram[was_zero, 17] = 1
    map_block(target.blocks[1])[4096 * 3] ^= 1
    assert (ram[stale] == old).all()
    assert sorted(target.verify()) == sorted(
        [
            BadPage("synthetic.ram", torn, "torn"),
            BadPage("synthetic.ram", stale, "stale"),
            BadPage("synthetic.ram", lost, "lost"),
            BadPage("synthetic.ram", foreign, "foreign"),
            BadPage("synthetic.ram", was_zero, "torn"),
            BadPage("synthetic.rom", 3, "torn"),
        ]
    )


def test_damage_is_remembered_when_written_over(make_guest: MakeGuest) -> None:
    """Broken: damage in pages that are written often would be gone before anybody looks."""
    guest = make_guest("256K,dirty-rate=8M,hot=100%,zero=0")
    guest.pause()
    ram = map_block(guest.blocks[0]).reshape(-1, 4096)
    page = int(np.flatnonzero(~zero_mask(ram))[0])
    ram[page, 100] ^= 1
    guest.resume()
    # Every page, and some more.
    wait_written(guest, 4 * len(ram))
    guest.pause()
    assert guest.verify() == [BadPage("synthetic.ram", page, "torn")]


@pytest.mark.parametrize(
    ("machine", "names", "length", "said"),
    [
        ("pc", ["synthetic.ram", "synthetic.rom"], 1 << 20, "cannot be a 'pc' machine"),
        ("synthetic-1", ["pc.ram"], 1 << 20, "are not a synthetic guest's"),
        ("synthetic-1", ["synthetic.ram", "synthetic.rom"], 5000, "not a multiple"),
    ],
)
def test_refuses_other_guests(
    make_guest: MakeGuest, machine: str, names: list[str], length: int, said: str
) -> None:
    """Broken: any stream could be loaded into a guest that cannot run it."""
    layout = [BlockLayout(name, length, 4096) for name in names[:1]]
    layout += [BlockLayout(name, 1 << 20, 4096) for name in names[1:]]
    guest = make_guest("")
    with pytest.raises(GuestError, match=said):
        guest.prepare(Machine(machine), layout)
    assert guest.blocks == ()


def test_refuses_device_state_that_does_not_fit(make_guest: MakeGuest) -> None:
    """Broken: a state from elsewhere would crash the guest (law 6)."""
    source, target = make_guest("1M"), make_guest("")
    source.pause()
    copy_ram(source, target)
    good = source.save_devices()
    (section,) = good.sections
    payload = whole(section.payload)
    bad = [b"", payload[:-1], b"\xff" * len(payload), payload + b"\0" * 4]
    for payload in bad:
        state = replace(good, sections=(replace(section, payload=payload),))
        with pytest.raises(GuestError, match="device state"):
            target.load_devices(source.machine, state)
    with pytest.raises(GuestError, match="device sections"):
        target.load_devices(source.machine, DeviceState((), (), None, 2))
    target.load_devices(source.machine, good)
    assert target.verify() == []


def test_pages_turn_zero_and_back(make_guest: MakeGuest) -> None:
    """Broken: `zeroing` would not try what becomes of pages that were zero in between."""
    guest = make_guest("1M,dirty-rate=20M,hot=100%,zero=0,pattern=zeroing")
    ram = map_block(guest.blocks[0]).reshape(-1, 4096)
    zero, back = np.zeros(256, np.bool_), np.zeros(256, np.bool_)
    deadline = time.monotonic() + PATIENCE
    while not back.all() and time.monotonic() < deadline:
        now = ram.any(axis=1)
        zero |= ~now
        back |= zero & now
    assert back.all()
    guest.pause()
    assert guest.verify() == []


def test_size_of_the_guest_that_arrives() -> None:
    """Broken: the same GUEST could not be named at both ends, or a guest would be taken for one."""
    machine = Machine("synthetic-1", 4096)
    rom = BlockLayout("synthetic.rom", 1 << 20, 4096)
    for size, arrives in (("2M", True), ("", True), ("4M", False)):
        guest = open_guest(f"synthetic:{size}", incoming=True)
        try:
            assert not guest.running
            assert not guest.blocks
            layout = [BlockLayout("synthetic.ram", 2 << 20, 4096), rom]
            if arrives:
                guest.prepare(machine, layout)
                assert guest.blocks[0].length == 2 << 20
            else:
                with pytest.raises(GuestError, match=r"has 2\.0 MiB of RAM, not 4\.0 MiB"):
                    guest.prepare(machine, layout)
        finally:
            guest.close()


def test_dead_guest_is_one_line(make_guest: MakeGuest) -> None:
    """Broken: a migration of a guest that died would hang or be a traceback."""
    guest = make_guest(BUSY)
    os.kill(guest.pid, signal.SIGKILL)
    with pytest.raises(GuestError, match="the guest process died"):
        guest.pause()
    assert not guest.running


def test_empty_guest_is_one_line(make_guest: MakeGuest) -> None:
    """Broken: sending a guest that was never given a size would be a traceback."""
    with pytest.raises(GuestError, match="no guest here yet"):
        make_guest("").save_devices()


def test_interrupted_command_does_not_shift_answers(make_guest: MakeGuest) -> None:
    """Broken: Ctrl-C during a command would make every later answer that of the one before."""
    guest = make_guest(BUSY)
    connection = guest._connection
    assert connection is not None
    send_message(connection, (99, "save"))
    assert isinstance(guest.counter(), int)
    guest.pause()
    assert guest.verify() == []


@pytest.mark.parametrize("pattern", ["random", "text", "sparse", "zeroing", "edited"])
def test_pattern_is_kept_where_it_goes(make_guest: MakeGuest, pattern: str) -> None:
    """Broken: an encoding would be measured on other bytes than it says."""
    guest = make_guest(f"{BUSY},pattern={pattern}")
    wait_written(guest, 1500)
    guest.pause()
    there = make_guest("")
    there.prepare(guest.machine, [BlockLayout(b.name, b.length, b.page_size) for b in guest.blocks])
    for ours, theirs in zip(guest.blocks, there.blocks, strict=True):
        map_block(theirs)[:] = map_block(ours)
    there.load_devices(guest.machine, guest.save_devices())
    before = map_block(there.blocks[0]).reshape(-1, 4096).copy()
    there.resume()
    wait_written(there, 700)
    there.pause()
    assert there.verify() == []
    after = map_block(there.blocks[0]).reshape(-1, 4096)
    written = (before != after).any(axis=1) & before.any(axis=1) & after.any(axis=1)
    changed = int((before[written] != after[written]).sum(axis=1).min())
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", np.uint8)
    # Beside a head, a checksum and the few words that a write changes.
    is_text = np.isin(after[written][:, 16:-8], letters).mean() > 0.9
    # Where every second write leaves nothing, what is there again is hardly new.
    assert (changed < 200) == (pattern in ("sparse", "zeroing", "edited"))
    assert is_text == (pattern in ("text", "edited"))


def test_unknown_pattern(make_guest: MakeGuest) -> None:
    """Broken: a mistyped pattern would be measured as another one."""
    with pytest.raises(GuestError, match="option pattern: 'noise' is none of random, text"):
        make_guest("4M,pattern=noise")


def test_interruption_at_the_start_is_ignored(
    make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: SIGINT while the guest's process starts would end it with a traceback."""
    started: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    interrupted: list[int] = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = started(*args, **options)
        process.send_signal(signal.SIGINT)
        interrupted.append(process.pid)
        return process

    monkeypatch.setattr("vmferry.guest.synthetic.subprocess.Popen", start)
    guest = make_guest("1M")
    assert interrupted == [guest.pid]
    assert guest.running


def test_quit_before_the_options() -> None:
    """Broken: Ctrl-C in the first moment would show a traceback of the guest's process."""
    ours, theirs = Pipe()
    ours.send((0, "quit"))
    with ours, theirs:
        command = [sys.executable, "-m", synthetic_process.__name__, str(theirs.fileno())]
        ran = subprocess.run(
            command, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False
        )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_memory_that_is_there_before_the_guest(make_guest: MakeGuest) -> None:
    """Broken: a destination could not make its memory before the migration, as QEMU can."""
    source = make_guest(f"{BUSY},prealloc=on")
    source.pause()
    assert not any(is_hole(block, 0, block.length) for block in source.blocks)
    target = SyntheticGuest.parse("4M,prealloc=on", incoming=True)
    try:
        copy_ram(source, target)
        assert [os.fstat(block.fd).st_blocks for block in target.blocks] == [8192, 2048]
        target.load_devices(source.machine, source.save_devices())
        assert target.verify() == []
    finally:
        target.close()
    with pytest.raises(GuestError, match="neither on nor off"):
        make_guest("4M,prealloc=1")


@pytest.mark.parametrize(("pattern", "least", "most"), [("random", 0.99, 1.1), ("text", 2.5, 5)])
def test_what_a_pattern_compresses_to(pattern: str, least: float, most: float) -> None:
    """Broken: a benchmark would measure the compression of something else than it says."""
    ram, rom = np.zeros(8 << 20, np.uint8), np.zeros(ROM_SIZE, np.uint8)
    Memory(ram, rom, 1, pattern).fill(0)
    assert least < len(ram) / len(ZstdCompressor(level=1).compress(ram.tobytes())) < most
