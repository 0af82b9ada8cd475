"""Extraction from streams of a real QEMU, beside what QEMU itself says that RAM holds."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vmferry.protocol.formats.core_notes import Note
from vmferry.protocol.formats.memory_image import PT_NOTE, ProgramHeader

from tests.qemu.machine import Machine, missing, vmferry

GIB = 1 << 30
PAGE = 4096


@pytest.mark.parametrize(
    ("machine", "below"), [("pc-i440fx-7.2", 3 * GIB), ("pc-q35-7.2", 2 * GIB)]
)
def test_addresses_around_the_hole(version: str, machine: str, below: int, tmp_path: Path) -> None:
    """Broken: memory would stand at other guest-physical addresses than QEMU has it at."""
    places = [16 << 20, below - 3 * PAGE, 4 * GIB, 4 * GIB + below // 4]
    options = ("-machine", machine, "-m", "4608")
    stream, seen = _seen_at(places, version, tmp_path, *options)
    blocks = _check_core(stream, tmp_path / "core", seen)
    assert [region["address"] for region in blocks[0]["regions"]] == [0, 4 * GIB]


@pytest.mark.parametrize("capability", ["x-ignore-shared", None])
@pytest.mark.parametrize(
    ("machine", "below"), [("pc-i440fx-7.2", 3 * GIB), ("pc-q35-7.2", 2 * GIB)]
)
def test_memory_of_nodes(
    version: str, machine: str, below: int, capability: str | None, tmp_path: Path
) -> None:
    """Broken: memory of a guest with NUMA nodes would stand in another order than it sees it, or
    at other addresses around the hole."""
    # In the order of the nodes, which neither their names nor their sizes tell.
    sizes = {"b": 1536, "a": 2560, "c": 512}
    options = ["-machine", machine, "-m", "4608"]
    for name, size in sizes.items():
        options += ["-object", f"memory-backend-ram,id={name},size={size}M"]
        options += ["-numa", f"node,memdev={name}"]
    inside = 1536 << 20
    places = [16 << 20, inside - 3 * PAGE, inside, below - 3 * PAGE, 4 * GIB]
    last = 4 * GIB + (4096 << 20) - below
    places += [last - 3 * PAGE, last, last + (512 << 20) - 3 * PAGE]
    stream, seen = _seen_at(places, version, tmp_path, *options, capability=capability)
    core = tmp_path / "core"
    if capability is None:
        ran = vmferry("extract", str(stream), "-o", str(core), "--format", "elf")
        assert ran.returncode == 1
        assert "order is not known; name those of the guest's memory in order" in ran.stderr
        assert not core.exists()
        blocks = _check_core(stream, core, seen, *(f"--block={name}" for name in sizes))
    else:
        blocks = _check_core(stream, core, seen)
    assert [block["block"] for block in blocks] == list(sizes)


def _seen_at(
    places: list[int], version: str, folder: Path, *options: str, capability: str | None = None
) -> tuple[Path, dict[int, bytes]]:
    """Return the stream of a guest with content of its own at each of these addresses, and three
    pages of memory that QEMU has there.
    """
    blobs = {place: folder / f"{place:x}.blob" for place in places}
    loaders = []
    for number, (place, blob) in enumerate(blobs.items()):
        blob.write_bytes(np.random.default_rng(number).bytes(3 * PAGE))
        loaders += ["-device", f"loader,file={blob},force-raw=on,addr={place:#x}"]
    guest = Machine(version, folder / "guest", *options, "-S", *loaders)
    stream, seen = folder / "stream", {}
    try:
        if capability is not None:
            guest.enable(capability)
        guest.migrate(f"exec:cat > {stream}")
        for place, blob in blobs.items():
            saved = folder / "saved"
            guest.ask("pmemsave", val=place, size=3 * PAGE, filename=str(saved))
            seen[place] = saved.read_bytes()
            assert seen[place] == blob.read_bytes()
    finally:
        guest.stop()
    return stream, seen


def _check_core(stream: Path, core: Path, seen: dict[int, bytes], *options: str) -> Any:
    """Check that an ELF core has these bytes at these addresses, and return its blocks."""
    ran = vmferry("extract", str(stream), "-o", str(core), "--format", "elf", "--json", *options)
    assert ran.returncode == 0, ran.stderr
    for place, data in seen.items():
        assert _in_core(core, place, len(data)) == data, hex(place)
    return json.loads(ran.stdout)["blocks"]


def _in_core(core: Path, address: int, size: int) -> bytes:
    """Return the bytes of an ELF core at this address, as `readelf` finds them."""
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


def test_registers(version: str, tmp_path: Path) -> None:
    """Broken: a debugger would see other registers than in the core that QEMU itself writes."""
    stream, core, dump = (tmp_path / name for name in ("stream", "core", "dump"))
    guest = Machine(version, tmp_path / "guest", "-smp", "3")
    try:
        guest.wait_for_beats()
        guest.ask("stop")
        guest.ask("dump-guest-memory", paging=False, protocol=f"file:{dump}")
        guest.migrate(f"exec:cat > {stream}")
    finally:
        guest.stop()
    ran = vmferry("extract", str(stream), "-o", str(core), "--format", "elf", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["processors"] == 3
    # What QEMU calls NT_PRSTATUS is that of a 32-bit guest here.
    ours, theirs = ([note for note in _notes(path) if note[0] == b"QEMU"] for path in (core, dump))
    assert len(ours) == 3
    assert ours == theirs


def _notes(path: Path) -> list[tuple[bytes, bytes]]:
    """Return names and contents of the notes of an ELF core."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    # QEMU's has section headers too.
    notes = ProgramHeader.parse(head[int.from_bytes(head[32:40], "little") :])
    assert notes.type == PT_NOTE
    raw = io.BytesIO(head[notes.offset : notes.offset + notes.file_size])
    found = []
    while raw.tell() < notes.file_size:
        note = Note.parse_stream(raw)
        found.append((note.name, note.content))
    return found


def test_debugger(version: str, tmp_path: Path) -> None:
    """Broken: gdb would not read the core, or find other registers or memory in it."""
    if shutil.which("gdb") is None:
        missing("gdb")
    stream, core = tmp_path / "stream", tmp_path / "core"
    guest = Machine(version, tmp_path / "guest")
    try:
        guest.wait_for_beats()
        guest.migrate(f"exec:cat > {stream}")
        told = guest.ask("human-monitor-command", **{"command-line": "info registers"})
    finally:
        guest.stop()
    ran = vmferry("extract", str(stream), "-o", str(core), "--format", "elf")
    assert ran.returncode == 0, ran.stderr
    place = re.search(r"\bE?R?IP=([0-9a-f]+)", told)
    assert place is not None, told
    # The boot sector stands where the BIOS put it.
    commands = (f"print $rip == 0x{place[1]}", "x/1xh 0x7dfe", "info threads")
    options = [option for command in commands for option in ("-ex", command)]
    shown = subprocess.run(
        ["gdb", "-nx", "-batch", *options, "-c", core], capture_output=True, text=True, check=True
    ).stdout
    assert "$1 = 1\n" in shown
    assert "0x7dfe:\t0xaa55\n" in shown
    assert "* 1    LWP 1" in shown


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
