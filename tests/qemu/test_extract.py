"""Extraction from streams of a real QEMU, beside what QEMU itself says that RAM holds."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.qemu.machine import (
    Machine,
    missing,
    rebuilt_stream,
    saved_stream,
    vmferry,
)

GIB = 1 << 30
PAGE = 4096


def test_extracts_what_qemu_rebuilds(version: str, tmp_path: Path) -> None:
    """Broken: a block's image would differ from what a stock QEMU makes of the same live stream."""
    stream, out = saved_stream(version, tmp_path), tmp_path / "out"
    ran = vmferry("extract", str(stream), "-o", str(out), "--all", "--json")
    assert ran.returncode == 0, ran.stderr
    blocks = json.loads(ran.stdout)["blocks"]
    assert len(blocks) > 3
    again = rebuilt_stream(version, tmp_path, stream)
    options = [f"--ram={block['block']}={block['file']}" for block in blocks]
    checked = vmferry("verify", str(again), *options)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("machine", "below"), [("pc-i440fx-7.2", 3 * GIB), ("pc-q35-7.2", 2 * GIB)]
)
def test_addresses_around_the_hole(version: str, machine: str, below: int, tmp_path: Path) -> None:
    """Broken: memory would stand at other guest-physical addresses than QEMU has it at."""
    (tmp_path / "blob").write_bytes(np.random.default_rng(1).bytes(3 * PAGE))
    places = [16 << 20, below - 3 * PAGE, 4 * GIB, 4 * GIB + below // 4]
    loaders = [
        option
        for place in places
        for option in ("-device", f"loader,file={tmp_path}/blob,force-raw=on,addr={place:#x}")
    ]
    options = ("-machine", machine, "-m", "4608", "-S", *loaders)
    guest = Machine(version, tmp_path / "guest", *options)
    stream, core = tmp_path / "stream", tmp_path / "core"
    try:
        guest.migrate(f"exec:cat > {stream}")
        for place in places:
            name = str(tmp_path / f"{place:x}")
            guest.ask("pmemsave", val=place - PAGE, size=5 * PAGE, filename=name)
    finally:
        guest.stop()
    ran = vmferry("extract", str(stream), "-o", str(core), "--format", "elf", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["blocks"][0]["regions"]
    assert [region["address"] for region in found] == [0, 4 * GIB]
    for place in places:
        # Beside RAM there is none, and QEMU gives what an empty bus does.
        seen = (tmp_path / f"{place:x}").read_bytes()[PAGE : 4 * PAGE]
        assert seen == (tmp_path / "blob").read_bytes()
        assert _in_core(core, place, 3 * PAGE) == seen


def _in_core(core: Path, address: int, size: int) -> bytes:
    """What an ELF core holds at this address, by readelf's word."""
    listed = subprocess.run(
        ["readelf", "-lW", str(core)], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():
        words = line.split()
        if words[:1] == ["LOAD"]:
            offset, _, start, length = (int(word, 16) for word in words[1:5])
            if start <= address and address + size <= start + length:
                with open(core, "rb") as file:
                    file.seek(offset + address - start)
                    return file.read(size)
    raise AssertionError(f"{address:#x} is in no segment: {listed}")


def test_named_backend_is_the_memory(version: str, tmp_path: Path) -> None:
    """Broken: memory with a name of its own (libvirt gives it one) would not be found."""
    options = ("-object", "memory-backend-ram,id=mine,size=32M", "-machine", "memory-backend=mine")
    guest = Machine(version, tmp_path / "guest", *options)
    stream, out = tmp_path / "stream", tmp_path / "ram"
    try:
        guest.wait_for_beats()
        guest.migrate(f"exec:cat > {stream}")
    finally:
        guest.stop()
    ran = vmferry("extract", str(stream), "-o", str(out), "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["blocks"][0]["block"] == "mine"
    # The boot sector stands where the BIOS put it.
    assert out.read_bytes()[0x7C00:][510:512] == b"\x55\xaa"


@pytest.fixture(params=["65536", "4096", "65536,extended_l2=on"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if shutil.which("qemu-img") is None:
        missing("qemu-img")
    path = tmp_path / "disk.qcow2"
    size = f"cluster_size={request.param}"
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", "-o", size, path, "20M"], check=True)
    return path


def test_savevm_is_read(version: str, disk: Path, tmp_path: Path) -> None:
    """Broken: a machine's state that `savevm` left would be read differently than QEMU does."""
    hmp = "human-monitor-command"
    options = ("-drive", f"file={disk},format=qcow2,if=ide")
    guest = Machine(version, tmp_path / "guest", *options)
    try:
        guest.wait_for_beats()
        # A disk that keeps no snapshots may not be there, and the guest has booted.
        guest.ask(hmp, **{"command-line": "eject -f boot"})
        for name in ("first", "second"):
            said = guest.ask(hmp, **{"command-line": f"savevm {name}"})
            assert not said, said
            guest.wait_for_beats()
        guest.ask("stop")
        guest.ask(hmp, **{"command-line": "loadvm first"})
        guest.migrate(f"exec:cat > {tmp_path}/again")
    finally:
        guest.stop()
    listed = json.loads(vmferry("dump", "--json", str(disk)).stdout)["snapshots"]
    assert [snapshot["name"] for snapshot in listed] == ["first", "second"]
    ran = vmferry("extract", f"{disk}#first", "-o", f"{tmp_path}/all", "--all", "--json")
    assert ran.returncode == 0, ran.stderr
    blocks = json.loads(ran.stdout)["blocks"]
    checked = vmferry(
        "verify", f"{tmp_path}/again", *[f"--ram={b['block']}={b['file']}" for b in blocks]
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
