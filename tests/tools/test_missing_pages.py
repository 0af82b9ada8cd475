"""Pages that never arrived: every command reports them, and what it wrote is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from vmferry.guest.sizes import format_size
from vmferry.protocol import events
from vmferry.protocol.wire import stream
from vmferry.protocol.wire.marks import CommandType

from tests import streams
from tests.protocol.test_virtio_mem import BLOCK, PLUGGED, REGION, early, late

PAGE = 4096
MEMORY = events.RamBlock("0000:00:01.0/vmem0", REGION)
HOLES = "0x14000, 0x17000-0x1e000, 0x1f000-0x28000, 0x2a000-0x3c000, 0x3d000-0x64000, 0xfa000"
LINE = f"pc.ram: 80 of 256 pages never arrived, first at {HOLES}-0x100000"
ROM = "/rom@etc/acpi: 6 of 8 pages never arrived, first at 0x0, 0x2000, 0x4000-0x8000"


@pytest.mark.parametrize("kind", ["raw", "elf", "lime"])
def test_extract(vmferry: Any, kind: str) -> None:
    """Broken: zeros would be given out for a guest's memory without a word."""
    path, out = vmferry.write("stream", streams.SMALL), vmferry.folder / "out"
    ran = vmferry.run("extract", "-f", path, "-o", str(out), "--format", kind)
    assert ran.status == 1
    assert ran.error == f"{path}: {LINE}; {out} has zeros in their place"
    assert "pc.ram  1.0 MiB" in ran.out
    assert out.read_bytes().endswith(streams.RAM["pc.ram"])


def test_extract_all(vmferry: Any) -> None:
    """Broken: a program, or a person who extracts every block, would not learn of it."""
    path, out = vmferry.write("stream", streams.SMALL), vmferry.folder / "out"
    result = vmferry.call("extract", "-f", path, "--all", "-o", str(out), "--json")
    assert result.exit_code == 1
    missing = json.loads(result.stdout)["missing"]
    assert [(block["block"], block["pages"], block["total"]) for block in missing] == [
        ("pc.ram", 80, 256),
        ("/rom@etc/acpi", 6, 8),
    ]
    assert missing[1]["first_ranges"] == [[0, PAGE], [0x2000, 0x3000], [0x4000, 0x8000]]
    assert len(result.stderr.splitlines()) == 2
    assert sorted(file.stat().st_size for file in out.iterdir()) == [8 * PAGE, 256 * PAGE]


def test_only_what_is_asked_for(vmferry: Any) -> None:
    """Broken: devices could not be taken out of a stream whose pages are elsewhere."""
    path = vmferry.write("stream", streams.SMALL)
    folder = str(vmferry.folder / "devices")
    assert vmferry.call("extract", "-f", path, "--devices", folder).exit_code == 0


@pytest.mark.parametrize("container", ["plain", "zstd", "mapped-ram"])
def test_convert(vmferry: Any, container: str) -> None:
    """Broken: half a guest would be put away as if it were a whole one."""
    path, out = vmferry.write("stream", streams.SMALL), vmferry.folder / "out"
    ran = vmferry.run("convert", "-f", path, str(out), "--to", container)
    assert ran.status == 1
    (sizes,) = ran.out.splitlines()
    assert sizes.startswith(f"{out}: {format_size(out.stat().st_size)}")
    assert ran.err.splitlines() == [
        f"vmferry: {path}: {line}; {out} lacks them, too" for line in (LINE, ROM)
    ]
    assert out.exists()


def test_verify_against(vmferry: Any) -> None:
    """Broken: RAM that nobody has would be called equal."""
    path = vmferry.write("stream", streams.WHOLE)
    half = vmferry.write("half", streams.SMALL)
    result = vmferry.call("verify", path, "--against", half)
    expected = [f"in the other stream, {line}" for line in (LINE, ROM)]
    assert (result.exit_code, result.stdout.splitlines()) == (1, expected)
    found = json.loads(vmferry.call("verify", path, "--against", half, "--json").stdout)
    assert [block["pages"] for block in found["against_unseen"]] == [80, 6]


def test_diff(vmferry: Any) -> None:
    """Broken: RAM that nobody has would be called equal."""
    path, half = vmferry.write("a", streams.WHOLE), vmferry.write("b", streams.SMALL)
    result = vmferry.call("diff", path, half)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"in the second, {LINE}",
        f"in the second, {ROM}",
        "equal: RAM and devices, apart from the pages that never arrived",
    ]
    found = json.loads(vmferry.call("diff", half, path, "--json").stdout)
    assert found["equal"] is False
    assert [[block["pages"] for block in side] for side in found["missing"]] == [[80, 6], []]


def _with_memory(state: events.DeviceSection, sent: list[int]) -> bytes:
    """Return a stream with a virtio-mem device, of whose blocks these were sent."""
    count = BLOCK // PAGE
    numbers = [n for block in sent for n in range(block * count, (block + 1) * count)]
    pages = streams.ram_part(streams.page_run(0, numbers, 0, blocks=[MEMORY]))
    before, behind = ([state], []) if "early" in state.name else ([], [state])
    head, ram = streams.opening()[:2], streams.ram_start([MEMORY])
    return streams.to_bytes([*head, *before, *ram, *pages, *streams.closing(behind)[:-1]])


@pytest.mark.parametrize("make", [early, late])
def test_unplugged_memory_is_not_missing(vmferry: Any, make: Any) -> None:
    """Broken: each guest with virtio-mem would fail; or its memory be lost without a word."""
    good = vmferry.write("good", _with_memory(make(), PLUGGED))
    result = vmferry.call("verify", good)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, f"{good}: valid")
    bad = vmferry.write("bad", _with_memory(make(), PLUGGED[:-1]))
    result = vmferry.call("verify", bad)
    last = f"{MEMORY.name}: {BLOCK // PAGE} of {REGION // PAGE} pages never arrived"
    where = f"first at {PLUGGED[-1] * BLOCK:#x}-{(PLUGGED[-1] + 1) * BLOCK:#x}"
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{last}, {where}; if this is the main channel of a multifd")
    of_another = _with_memory(make(), PLUGGED).replace(b"1.0/virtio", b"2.0/virtio")
    assert vmferry.call("verify", vmferry.write("other", of_another)).exit_code == 1


def test_what_a_postcopy_discards(vmferry: Any) -> None:
    """Broken: pages that the destination throws away, and that never arrive again, would be given
    out as the guest's."""
    ranges = [{"start": 3 * PAGE, "length": 2 * PAGE}]
    values = {"version": None, "block": b"pc.ram", "ranges": ranges, "end": None}
    command = events.Command(0, CommandType.POSTCOPY_RAM_DISCARD, stream.RamDiscard.build(values))
    opening, again = (
        streams.opening(),
        streams.ram_part(streams.page_run(0, [3, 4])),
    )
    whole = [*opening, *streams.zeros(), command, *again, *streams.closing()]
    assert vmferry.call("verify", vmferry.write("a", streams.to_bytes(whole))).exit_code == 0
    half = [*opening, *streams.zeros(), *again, command, *streams.closing()]
    result = vmferry.call("verify", vmferry.write("b", streams.to_bytes(half)))
    lost = "pc.ram: 2 of 256 pages never arrived, first at 0x3000-0x5000\n"
    assert (result.exit_code, result.stdout) == (1, lost)
