"""ELF cores of guests of many processors and kinds of memory, beside QEMU's own dump of each."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from vmferry.protocol.formats.memory_image import (
    PT_LOAD,
    PT_NOTE,
    Processor,
    elf_header,
    program_header,
)

from tests.qemu.machine import MIB, BareMachine, qemu_command, vmferry


class Core(NamedTuple):
    """An ELF core: what its header says, its notes, and segments as (address, length, place)."""

    path: Path
    processor: Processor
    notes: bytes
    segments: list[tuple[int, int, int]]

    def at(self, address: int, length: int) -> bytes | None:
        """Return the memory at an address; None if not all of it is there."""
        found = b""
        for start, size, place in sorted(self.segments):
            if start <= address < start + size:
                count = min(length - len(found), start + size - address)
                with self.path.open("rb") as file:
                    file.seek(place + address - start)
                    found += file.read(count)
                address += count
        return found if len(found) == length else None


def read_core(path: Path) -> Core:
    """Return the head of a core."""
    with path.open("rb") as file:
        data = file.read(4 << 20)
    bits, little = (32, 64)[data[4] - 1], data[5] == 1
    machine = int.from_bytes(data[18:20], "little" if little else "big")
    processor = Processor(machine, bits, little)
    entry = program_header(processor)
    # QEMU's core has section headers too, which the declaration has no place for.
    place, size = (32, 8) if bits == 64 else (28, 4)
    start = int.from_bytes(data[place : place + size], "little" if little else "big")
    counted = 56 if bits == 64 else 44
    count = int.from_bytes(data[counted : counted + 2], "little" if little else "big")
    found = [entry.parse(data[start + n * entry.sizeof() :]) for n in range(count)]
    notes = b"".join(data[h.offset : h.offset + h.file_size] for h in found if h.type == PT_NOTE)
    loads = [(h.physical_address, h.memory_size, h.offset) for h in found if h.type == PT_LOAD]
    assert elf_header(processor).sizeof() <= start
    return Core(path, processor, notes, loads)


def both_cores(
    version: str,
    target: str,
    folder: Path,
    *options: str,
    page_size: int = 4096,
    extract: tuple[str, ...] = (),
    capabilities: tuple[str, ...] = (),
    before: Callable[[], None] = lambda: None,
) -> tuple[Core, Core, Any]:
    """Return QEMU's core of a guest, vmferry's, and what `extract` printed."""
    dump, stream, core = (folder / name for name in ("dump", "stream", "core"))
    command, environment = qemu_command(version, target)
    guest = BareMachine([*command, "-S"], folder / "guest", *options, environment=environment)
    try:
        guest.enable(*capabilities)
        before()
        guest.ask("dump-guest-memory", paging=False, protocol=f"file:{dump}")
        guest.migrate(f"exec:cat > {stream}")
    finally:
        guest.stop()
    size = ("--page-size", str(page_size))
    ran = vmferry(
        "extract", str(stream), "-o", str(core), "--format", "elf", "--json", *size, *extract
    )
    assert ran.returncode == 0, ran.stderr
    return read_core(dump), read_core(core), json.loads(ran.stdout)


def blobs(folder: Path, *places: int) -> list[str]:
    """Return the options that put something at each of these addresses."""
    options = []
    for place in places:
        blob = folder / f"{place:x}.blob"
        blob.write_bytes(f"{place:x}, ".encode() * 4096)
        options += ["-device", f"loader,file={blob},force-raw=on,addr={place:#x}"]
    return options


def check_same(theirs: Core, ours: Core, places: tuple[int, ...]) -> None:
    """Check that all of vmferry's core is as in QEMU's, and that it has these addresses."""
    for address, length, _ in ours.segments:
        for start, size, _ in theirs.segments:
            begin, end = max(address, start), min(address + length, start + size)
            for at in range(begin, end, MIB):
                count = min(MIB, end - at)
                # Where theirs has a ROM before RAM, ours has the RAM.
                if at >= MIB or "86" not in ours.path.parent.name:
                    assert ours.at(at, count) == theirs.at(at, count), hex(at)
    for place in places:
        found = ours.at(place, 4096)
        assert found is not None
        assert found.startswith(f"{place:x}, ".encode())
        assert found == theirs.at(place, 4096)


def starts(core: Core) -> set[int]:
    """Return the addresses of a core's segments."""
    return {address for address, _, _ in core.segments}


@pytest.mark.parametrize(
    ("version", "target", "options", "memory", "page_size"),
    [
        ("7.2", "arm", ("-machine", "virt", "-cpu", "cortex-a15"), 1 << 30, 4096),
        ("10", "arm", ("-machine", "virt", "-cpu", "cortex-a7", "-smp", "2"), 1 << 30, 4096),
        ("7.2", "arm", ("-machine", "vexpress-a15"), 0x8000_0000, 1024),
        ("7.2", "arm", ("-machine", "versatilepb"), 0, 1024),
        ("7.2", "aarch64", ("-machine", "virt", "-cpu", "cortex-a57"), 1 << 30, 4096),
        ("10", "aarch64", ("-machine", "virt", "-cpu", "cortex-a57", "-smp", "2"), 1 << 30, 4096),
        ("10", "aarch64", ("-machine", "virt", "-cpu", "cortex-a15"), 1 << 30, 4096),
        ("7.2", "i386", ("-machine", "pc", "-cpu", "qemu32", "-smp", "2"), 0, 4096),
        ("10", "i386", ("-machine", "q35"), 0, 4096),
    ],
)
def test_processors_with_registers(
    version: str,
    target: str,
    options: tuple[str, ...],
    memory: int,
    page_size: int,
    tmp_path: Path,
) -> None:
    """Broken: a core would claim another processor than the guest has, other registers, or memory
    at another address."""
    folder = tmp_path / target
    folder.mkdir()
    place = memory + 0x0120_0000
    there = blobs(folder, place)
    theirs, ours, told = both_cores(
        version, target, folder, *options, "-m", "64", *there, page_size=page_size
    )
    assert told["notices"] == []
    assert ours.notes == theirs.notes
    expected = theirs.processor
    if target == "i386":
        # QEMU's has 64 bits for its BIOS alone, which ends at 4 GiB.
        assert expected.bits == 64
        expected = expected._replace(bits=32)
    assert ours.processor == expected
    assert memory in starts(ours)
    check_same(theirs, ours, (place,))


class Registers(NamedTuple):
    """Registers of a processor as gdb numbers them: the sizes of numbers 0, 1, ..., which are set
    to something that each byte of differs; and what else is true of the notes.

    `process`: where the number of the processor stands in the notes, where QEMU's has another
    order of bytes, or none; `more`: bytes of further notes of QEMU's, which ours lacks.
    """

    sizes: tuple[int, ...]
    process: int | None = None
    more: int = 0


OTHERS = {
    "ppc64": (("-machine", "pseries", "-m", "256"), 0, Registers((8,) * 32, 52, 1000)),
    "s390x": (
        ("-machine", "s390-ccw-virtio", "-m", "64"),
        0,
        Registers((8,) * 18 + (4,) * 17 + (8,) * 16, 52, 52),
    ),
    "riscv64": (("-machine", "virt", "-m", "64"), 0x8000_0000, Registers((8,) * 33)),
    "riscv32": (
        ("-machine", "virt", "-bios", "none", "-m", "64"),
        0x8000_0000,
        Registers((4,) * 33),
    ),
}


def set_registers(place: Path, sizes: tuple[int, ...]) -> None:
    """Set registers by way of gdb's remote protocol."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(place))

        def ask(text: bytes) -> bytes:
            server.sendall(b"$%s#%02x" % (text, sum(text) & 0xFF))
            answer = b""
            while (found := re.search(rb"\$([^#]*)#..", answer, re.DOTALL)) is None:
                answer += server.recv(4096)
            server.sendall(b"+")
            return found[1]

        # Registers can be set one by one only after this was asked for.
        ask(b"qXfer:features:read:target.xml:0,ffb")
        for number, size in enumerate(sizes):
            value = bytes(number * 7 + index * 13 + 1 & 0xFF for index in range(size))
            assert ask(b"P%x=%s" % (number, value.hex().encode())) == b"OK"


@pytest.mark.parametrize("target", OTHERS)
def test_registers_of_other_processors(target: str, tmp_path: Path) -> None:
    """Broken: a core would have other registers than the guest, and a debugger show nonsense."""
    options, memory, registers = OTHERS[target]
    folder = tmp_path / target
    folder.mkdir()
    place = memory + 0x0120_0000
    gdb = f"unix:{folder}/gdb,server=on,wait=off"
    theirs, ours, told = both_cores(
        "7.2",
        target,
        folder,
        *(*options, *blobs(folder, place), "-gdb", gdb),
        before=lambda: set_registers(folder / "gdb", registers.sizes),
    )
    assert (told["processors"], told["notices"]) == (1, [])
    assert ours.processor == theirs.processor
    check_same(theirs, ours, (place,))
    assert len(ours.notes) + registers.more == len(theirs.notes)
    their_notes, our_notes = bytearray(theirs.notes), bytearray(ours.notes)
    if registers.process is not None:
        for notes in (their_notes, our_notes):
            notes[registers.process : registers.process + 4] = bytes(4)
    assert our_notes == their_notes[: len(our_notes)]


def test_registers_of_ppc(tmp_path: Path) -> None:
    """Broken: a core would claim another processor; QEMU's own has a layout that gdb does not
    know."""
    folder = tmp_path / "ppc"
    folder.mkdir()
    options = ("-machine", "g3beige", "-m", "64", "-gdb", f"unix:{folder}/gdb,server=on,wait=off")
    theirs, ours, told = both_cores(
        "7.2",
        "ppc",
        folder,
        *(*options, *blobs(folder, 0x0120_0000)),
        before=lambda: set_registers(folder / "gdb", (4,) * 32),
    )
    assert (told["processors"], told["notices"]) == (1, [])
    assert ours.processor == theirs.processor
    check_same(theirs, ours, (0x0120_0000,))
    # The 32 general registers, and those of NT_FPREGSET and those behind.
    general = theirs.notes[132:260]
    assert len({*general}) > 100
    assert ours.notes[92:220] == general
    assert (len(ours.notes), ours.notes[7]) == (20 + 268 + 20 + 260, 268 & 0xFF)


@pytest.mark.parametrize("machine", ["m68k", "mips", "mips64el", "sparc"])
def test_processors_that_qemu_does_not_dump(machine: str, tmp_path: Path) -> None:
    """Broken: an ELF core would claim another processor, word size or byte order."""
    names = {
        "m68k": ("virt", "MC68000", "ELF32", "big endian"),
        "mips": ("malta", "MIPS R3000", "ELF32", "big endian"),
        "mips64el": ("malta", "MIPS R3000", "ELF64", "little endian"),
        "sparc": ("SS-5", "Sparc", "ELF32", "big endian"),
    }
    kind, *expected = names[machine]
    stream, core = tmp_path / "stream", tmp_path / "core"
    command, environment = qemu_command("7.2", machine)
    options = ("-machine", kind, "-m", "32", "-S")
    guest = BareMachine(command, tmp_path / "guest", *options, environment=environment)
    try:
        guest.migrate(f"exec:cat > {stream}")
    finally:
        guest.stop()
    ran = vmferry("extract", str(stream), "-o", str(core), "--format", "elf")
    assert ran.returncode == 0, ran.stderr
    shown = subprocess.run(
        ["readelf", "-hlW", core], capture_output=True, text=True, check=True
    ).stdout
    for text in expected:
        assert text in shown
    assert "LOAD           0x400000 0x00" in shown


MEMORY = ("-m", "64,slots=4,maxmem=8G")
ONE = ("-object", "memory-backend-ram,id=mem1,size=128M")


@pytest.mark.parametrize(
    ("what", "machine", "options", "places"),
    [
        ("dimm", "q35", (*ONE, "-device", "pc-dimm,memdev=mem1"), (4 << 30,)),
        ("dimm of pc", "pc", (*ONE, "-device", "pc-dimm,memdev=mem1"), (4 << 30,)),
        ("dimm above 4 GiB", "q35", (*ONE, "-device", "pc-dimm,memdev=mem1"), (6 << 30,)),
        (
            "memory with another name",
            "q35,memory-backend=ram0",
            (
                *("-object", "memory-backend-ram,id=ram0,size=64M"),
                *(*ONE, "-device", "pc-dimm,memdev=mem1"),
            ),
            (4 << 30,),
        ),
        ("nvdimm", "q35,nvdimm=on", (*ONE, "-device", "nvdimm,memdev=mem1"), (4 << 30,)),
        (
            "dimm and nvdimm",
            "q35,nvdimm=on",
            (
                *("-object", "memory-backend-ram,id=mem2,size=256M"),
                *(*ONE, "-device", "nvdimm,memdev=mem1,label-size=128K"),
                *("-device", "pc-dimm,memdev=mem2"),
            ),
            (4 << 30, (4 << 30) + (126 << 20)),
        ),
        (
            "as Kata starts guests",
            "q35,nvdimm=on",
            (
                *("-object", "memory-backend-ram,id=dimm1,size=64M", "-numa", "node,memdev=dimm1"),
                *("-object", "memory-backend-ram,id=mem0,size=64M", "-device"),
                "nvdimm,memdev=mem0",
            ),
            (4 << 30,),
        ),
    ],
)
def test_plugged_in(
    version: str,
    what: str,
    machine: str,
    options: tuple[str, ...],
    places: tuple[int, ...],
    tmp_path: Path,
) -> None:
    """Broken: memory that was plugged in would be missing from a core, or be at another address."""
    folder = tmp_path / "x86"
    folder.mkdir()
    memory = ("-m", "4G,slots=4,maxmem=8G") if "above" in what else MEMORY
    theirs, ours, told = both_cores(
        version, "x86_64", folder, "-machine", machine, *memory, *options, *blobs(folder, *places)
    )
    assert told["left_out"] == []
    assert starts(ours) >= {0, *places}
    assert max(starts(ours)) == max(starts(theirs))
    check_same(theirs, ours, places)


def test_plugged_in_of_arm(version: str, tmp_path: Path) -> None:
    """Broken: a DIMM of an Arm guest would be missing from a core, or be at another address."""
    folder = tmp_path / "arm"
    folder.mkdir()
    firmware = folder / "firmware"
    firmware.write_bytes(bytes(1 << 16))
    options = ("-machine", "virt", "-cpu", "cortex-a57", "-bios", str(firmware), *MEMORY)
    dimm = (*ONE, "-device", "pc-dimm,memdev=mem1")
    there = blobs(folder, 2 << 30)
    theirs, ours, told = both_cores(version, "aarch64", folder, *options, *dimm, *there)
    assert told["left_out"] == []
    assert starts(ours) == {1 << 30, 2 << 30}
    check_same(theirs, ours, (2 << 30,))


def test_several_dimms(version: str, tmp_path: Path) -> None:
    """Broken: one DIMM's memory would be at another's address; or nobody would say that they are
    left out, and how they are placed."""
    folder = tmp_path / "x86"
    folder.mkdir()
    options = ["-machine", "q35", *MEMORY, *ONE, "-object", "memory-backend-ram,id=b,size=256M"]
    options += ["-device", "pc-dimm,memdev=b", "-device", "pc-dimm,memdev=mem1"]
    places = (4 << 30, (4 << 30) + (256 << 20))
    options += blobs(folder, *places)
    _, ours, told = both_cores(version, "x86_64", folder, *options)
    assert starts(ours) == {0}
    assert [left["block"] for left in told["left_out"]] == ["b", "mem1"]
    assert "begins at 0x100000000; --block b@ADDRESS places it" in told["left_out"][0]["why"]
    said = ("--block", "b@0x100000000", "--block", "mem1@0x110000000")
    core = folder / "core"
    ran = vmferry(
        "extract", str(folder / "stream"), "-o", str(core), "-f", "--format", "elf", *said
    )
    assert ran.returncode == 0, ran.stderr
    check_same(read_core(folder / "dump"), read_core(core), places)
    over = ("--block", "b@0x100000000", "--block", "mem1@0x100000000")
    ran = vmferry(
        "extract", "-f", str(folder / "stream"), "-o", str(core), "-f", "--format", "elf", *over
    )
    assert "two RAM blocks would be at 0x100000000" in ran.stderr
    # Where blocks carry addresses, nothing is left to be said.
    for option in ("share=on,id=mem1", "share=on,id=b"):
        options = [each.replace(option[9:], option) for each in options]
    again = tmp_path / "again"
    again.mkdir()
    command, environment = qemu_command(version)
    guest = BareMachine([*command, "-S"], again / "guest", *options, environment=environment)
    stream = again / "stream"
    try:
        guest.enable("x-ignore-shared")
        guest.migrate(f"exec:cat > {stream}")
    finally:
        guest.stop()
    ran = vmferry("extract", str(stream), "-o", str(core), "-f", "--format", "elf")
    assert ran.returncode == 0, ran.stderr
    assert (
        ran.stdout.count("is left out: the stream does not bring it") + (version == "10") * 2 == 2
    )


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "q35"])
def test_virtio_mem(version: str, machine: str, tmp_path: Path) -> None:
    """Broken: memory of virtio-mem would be missing, at another address, or be there though the
    guest has not plugged it in."""
    folder = tmp_path / "x86"
    folder.mkdir()
    mem = (*ONE, "-device", "virtio-mem-pci,memdev=mem1,id=vm0,requested-size=64M")
    _, ours, told = both_cores(version, "x86_64", folder, "-machine", machine, *MEMORY, *mem)
    assert starts(ours) == {0}
    assert told["left_out"] == []
    assert [block["block"] for block in told["blocks"]] == ["pc.ram"]
