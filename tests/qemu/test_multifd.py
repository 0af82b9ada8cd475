"""Captured multifd migrations of real QEMUs, beside what the destination built of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from vmferry.protocol import events
from vmferry.tools.sources.channels import opened_channels
from vmferry.tools.sources.stream_events import read_events

from tests.qemu.capture import Capture
from tests.qemu.machine import MANY_PAGES, MIB, Machine, in_fourth_round, vmferry

SIZE = 32 * MIB
UUID = "00112233-4455-6677-8899-aabbccddeeff"
MEMORY = f"memory-backend-memfd,id=pc.ram,size={SIZE},share=on"


@dataclass(frozen=True)
class Row:
    """A migration: of which QEMU and machine, over how many channels, how compressed."""

    version: str
    machine: str
    channels: int
    compression: str = "none"
    zero_pages: str | None = None
    """`zero-page-detection`, where QEMU knows it."""
    uuid: bool = False


TABLE = {
    "7.2": Row("7.2", "pc-i440fx-7.2", 2),
    "7.2, 8 channels, zlib": Row("7.2", "q35", 8, "zlib", uuid=True),
    "7.2, 4 channels, zstd": Row("7.2", "pc-i440fx-7.2", 4, "zstd"),
    "10": Row("10", "pc-i440fx-10.0", 2, uuid=True),
    "10, 8 channels, zstd": Row("10", "pc-i440fx-10.0", 8, "zstd"),
    "10, 4 channels, zlib, legacy": Row("10", "q35", 4, "zlib", "legacy"),
    "10, no zero pages": Row("10", "pc-i440fx-10.0", 4, "zstd", "none"),
    "10, older machine": Row("10", "pc-i440fx-7.2", 2),
}


def options(row: Row) -> tuple[str, ...]:
    """Return the options of a machine, at whichever end."""
    identity = ("-uuid", UUID) if row.uuid else ()
    return ("-object", MEMORY, "-machine", "memory-backend=pc.ram", *identity)


def captured(row: Row, folder: Path) -> tuple[Path, list[Path], Path]:
    """Migrate a guest that writes its memory; the main channel, the others, and the memory that the
    destination built."""
    shape = {"machine": row.machine, "code": MANY_PAGES}
    source = Machine(row.version, folder / "source", *options(row), **shape)  # type: ignore[arg-type]
    listening = (*options(row), "-S", "-incoming", "defer")
    target = Machine(row.version, folder / "target", *listening, **shape)  # type: ignore[arg-type]
    truth = folder / "truth"
    try:
        source.wait_for_beats()
        parameters: dict[str, object] = {
            "multifd-channels": row.channels,
            "multifd-compression": row.compression,
        }
        if row.zero_pages is not None:
            parameters["zero-page-detection"] = row.zero_pages
        for machine in (source, target):
            machine.enable("multifd")
            machine.ask("migrate-set-parameters", **parameters)
        target.ask("migrate-incoming", uri=f"unix:{folder}/in")
        capture = Capture(folder / "relay", folder / "in", folder / "channels")
        # So little a second that a round takes longer than the guest needs to write again.
        limit = 16 * MIB if row.compression == "none" else MIB // 2
        source.migrate_until(f"unix:{folder}/relay", in_fourth_round, limit)
        target.wait_for("completed")
        shutil.copyfile(target.shared_memory(), truth)
    finally:
        source.stop()
        target.stop()
    main, others = capture.close()
    assert len(others) == row.channels
    return main, others, truth


@pytest.mark.parametrize("name", TABLE)
def test_multifd(name: str, tmp_path: Path) -> None:
    """Broken: RAM of a captured multifd migration would be built otherwise than QEMU builds it."""
    row = TABLE[name]
    main, others, truth = captured(row, tmp_path)
    options = [f"--channel={file}" for file in others]
    out, plain = tmp_path / "ram", tmp_path / "plain"
    ran = vmferry("extract", str(main), *options[::-1], "-o", str(out))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert subprocess.run(["cmp", out, truth], check=False).returncode == 0
    check_order(row, main, others)
    found = json.loads(vmferry("dump", "--json", str(main), *options).stdout)
    assert [one["channel"] for one in found["channels"]] == [*range(row.channels)]
    assert {one["compression"] for one in found["channels"]} == {row.compression}
    assert len(found["rounds"]) > 3
    # What a stock QEMU makes of the stream of one channel, and sends again.
    assert vmferry("convert", str(main), str(plain), "--to", "plain", *options).returncode == 0
    check_loads(row, plain, truth, tmp_path)
    alone = vmferry("extract", "-f", str(main), "-o", str(out))
    assert (alone.returncode, "--channel" in alone.stderr) == (1, True)


def check_order(row: Row, main: Path, others: list[Path]) -> None:
    """Check that packets between two sync points may be taken in any order: no page arrives twice,
    or (QEMU 7.2) it arrives again behind the sync point if its content differed.
    """
    with main.open("rb") as file, opened_channels([str(one) for one in others]) as channels:
        interval: dict[tuple[int, int], int] = {}
        over: dict[tuple[int, int], set[int | None]] = {}
        owed: set[tuple[int, int]] = set()
        later: set[tuple[int, int]] = set()
        at_flush = False
        for event in read_events(file, channels=channels):
            if isinstance(event, events.PageRun):
                channel = event.channel if isinstance(event, events.MultifdRun) else None
                for row_number, offset in enumerate(event.offsets.tolist()):
                    page = (event.block_index, offset)
                    data = b"" if event.data is None else event.data[row_number].tobytes()
                    over.setdefault(page, set()).add(channel)
                    assert page not in interval or row.version == "7.2"
                    if interval.setdefault(page, hash(data)) != hash(data):
                        later.add(page)
                    owed.discard(page)
            at_flush |= isinstance(event, events.MultifdFlush)
            if isinstance(event, events.MultifdFlush if at_flush else events.EndOfRam):
                owed |= later
                interval.clear()
                later.clear()
        assert not owed
        assert max(map(len, over.values())) > 1


def check_loads(row: Row, plain: Path, truth: Path, folder: Path) -> None:
    """Check that a stock QEMU builds the same memory from the ordinary stream."""
    options = ("-object", MEMORY, "-machine", "memory-backend=pc.ram", "-S", "-incoming", "defer")
    stock = Machine(row.version, folder / "stock", *options, machine=row.machine, code=MANY_PAGES)
    try:
        stock.ask("migrate-incoming", uri=f"exec:cat {plain}")
        stock.wait_for("completed")
        same = subprocess.run(["cmp", stock.shared_memory(), truth], check=False)
        assert same.returncode == 0
    finally:
        stock.stop()
