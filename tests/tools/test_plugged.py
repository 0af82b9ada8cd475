"""Memory that was plugged into a guest: what devices tell of it, and lies in what they tell."""

from __future__ import annotations

import random
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.devices import virtio_mem as protocol
from vmferry.protocol.formats import nfit
from vmferry.protocol.formats.memory_image import Region
from vmferry.tools.machines.main_ram import Choice, Guest, LayoutError, choose
from vmferry.tools.machines.plugged import Facts, look, place, settle
from vmferry.tools.machines.table import is_of_a_device, table

MIB = 1 << 20
GIB = 1 << 30
BLOCK = events.RamBlock("0000:00:01.0/mem1", 256 * MIB)
PC = Guest("pc-q35-7.2")
LOW = [Region(0, GIB, 0)]


def virtio_mem(numbers: tuple[int, ...], early: bool = True, **changes: int) -> Facts:
    """Return what is known of a device at 4 GiB that has these blocks of 2 MiB."""
    bits = bytearray(16)
    for number in numbers:
        bits[number // 64 * 8 + 7 - number % 64 // 8] |= 1 << number % 8
    values: dict[str, Any] = {
        "address": 4 * GIB,
        "region_size": BLOCK.length,
        "block_size": 2 * MIB,
        "node": 0,
        "size": len(numbers) * 2 * MIB,
        "usable_region_size": BLOCK.length,
        "requested_size": 64 * MIB,
        "bitmap": bytes(bits),
        **changes,
    }
    if early:
        name, payload = protocol.EARLY_NAME, protocol.EarlyState.build(values)
    else:
        name = protocol.NAME
        payload = bytes(999) + protocol.State.build(values) + bytes(bits)
    section = events.DeviceSection(0, 1, f"0000:00:01.0/{name}", 0, 1, payload)
    return look([section], None, [BLOCK])


@pytest.mark.parametrize("early", [False, True])
def test_plugged_parts(early: bool) -> None:
    """Broken: parts that are not plugged in would be in a core, or others at a wrong place."""
    facts = virtio_mem((0, 1, 63, 64, 127), early)
    placed, left = place(PC, LOW, Choice([], []), [BLOCK], facts)
    assert left == []
    step = 2 * MIB
    assert placed[0].regions == [
        Region(0, 2 * step, 4 * GIB),
        Region(63 * step, 2 * step, 4 * GIB + 63 * step),
        Region(127 * step, step, 4 * GIB + 127 * step),
    ]


@pytest.mark.parametrize(
    "changes",
    [{"size": 2 * MIB}, {"block_size": 3 * MIB}, {"address": (1 << 64) - 2 * MIB}],
)
def test_lies_of_virtio_mem(changes: dict[str, int]) -> None:
    """Broken: a device's lie would put memory somewhere, or end in a traceback."""
    facts = virtio_mem((1, 2), True, **changes)
    placed, left = place(PC, LOW, Choice([], []), [BLOCK], facts)
    assert placed == []
    assert "its device does not say where it is; --block 0000:00:01.0/mem1@" in left[0].why


def tables(*ranges: tuple[int, int], **changes: int) -> bytes:
    """Return ACPI tables that list these NVDIMMs."""
    made = b"".join(
        nfit.Range.build(
            {
                "entry": {"type": 0, "length": 56},
                "guid": nfit.PERSISTENT_MEMORY,
                "address": address,
                "length": length,
            }
        ).ljust(56, b"\0")
        for address, length in ranges
    )
    size = nfit.Table.sizeof() + len(made)
    head: bytes = nfit.Table.build({"length": size, **changes})
    return bytes(77) + head + made + bytes(99)


def test_nvdimms_of_tables() -> None:
    """Broken: an NVDIMM would be missing from a core, or be at another address."""
    found = [(4 * GIB, 126 * MIB), (5 * GIB, GIB)]
    assert nfit.ranges(tables(*found)) == found
    blocks = [events.RamBlock("b", GIB), events.RamBlock("a", 128 * MIB)]
    facts = look([], None, tables=tables(*found))
    placed, left = place(PC, LOW, Choice([], blocks), blocks, facts)
    assert left == []
    assert [(each.block.name, each.regions) for each in placed] == [
        ("a", [Region(0, 126 * MIB, 4 * GIB)]),
        ("b", [Region(0, GIB, 5 * GIB)]),
    ]
    # Which is which is not known of two that are alike.
    twins = [events.RamBlock(name, GIB) for name in ("a", "b")]
    facts = look([], None, tables=tables((4 * GIB, GIB), (5 * GIB, GIB)))
    placed, left = place(PC, LOW, Choice([], twins), twins, facts)
    assert (placed, len(left)) == ([], 2)


def test_lies_of_tables() -> None:
    """Broken: tables that make no sense would end in a traceback, or put memory somewhere."""
    sound = tables((4 * GIB, GIB))
    assert nfit.ranges(tables((4 * GIB, GIB), length=95)) == []
    assert nfit.ranges(tables((4 * GIB, GIB), length=(1 << 32) - 1)) == []
    assert nfit.ranges(tables(((1 << 64) - 1, GIB))) == []
    assert nfit.ranges(sound[:150]) == []
    draw = random.Random(1)
    for _ in range(2000):
        data = bytearray(sound)
        for _ in range(draw.randrange(1, 5)):
            data[draw.randrange(77, 180)] = draw.randrange(256)
        for address, length in nfit.ranges(bytes(data[: draw.randrange(len(data))])):
            assert address + length <= 1 << 64


@pytest.mark.parametrize(
    ("sizes", "facts", "main"),
    [
        ({"dimm": 2, "ram": 1}, Facts(slots=1, ram_size=GIB), "ram"),
        ({"ram": 2, "dimm": 1}, Facts(slots=1, ram_size=2 * GIB), "ram"),
        ({"c": 4, "b": 2, "a": 1}, Facts(slots=2, ram_size=2 * GIB), "b"),
        # Without a size: what NVDIMMs do not take.
        ({"ram": 2, "dimm": 1}, Facts(slots=0, nvdimms=[(4 * GIB, GIB)]), "ram"),
        # QEMU lists blocks of one size in the order in which it made them.
        ({"ram": 1, "dimm": 1}, Facts(slots=1, ram_size=GIB), "ram"),
    ],
)
def test_memory_by_its_size(sizes: dict[str, int], facts: Facts, main: str) -> None:
    """Broken: what was plugged in would be taken for the memory."""
    blocks = [events.RamBlock(name, size * GIB) for name, size in sizes.items()]
    found = settle(choose(blocks), facts)
    assert found.main is not None
    assert [block.name for block in found.main] == [main]
    assert {block.name for block in found.others} == {*sizes} - {main}


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        ({"a": 2, "b": 1}, Facts()),
        ({"a": 2, "b": 1}, Facts(slots=0)),
        ({"a": 2, "b": 1}, Facts(slots=1)),
        ({"a": 2, "b": 1}, Facts(slots=1, ram_size=GIB // 2)),
        ({"a": 2, "b": 1}, Facts(slots=2, ram_size=GIB)),
        ({"a": 3, "b": 2, "c": 1}, Facts(slots=1, ram_size=3 * GIB)),
        ({str(number): 1 for number in range(40)}, Facts(slots=20, ram_size=20 * GIB)),
    ],
)
def test_memory_that_sizes_do_not_tell(sizes: dict[str, int], facts: Facts) -> None:
    """Broken: a block would be taken for the memory by chance."""
    blocks = [events.RamBlock(name, size * GIB) for name, size in sizes.items()]
    with pytest.raises(LayoutError, match="order is not known; name those"):
        settle(choose(blocks), facts)


def test_where_a_dimm_goes() -> None:
    """Broken: a DIMM would be at an address that something else has, or where it was not put."""
    block = events.RamBlock("dimm", GIB)
    taken = Facts(slots=1, virtio_mem=virtio_mem(()).virtio_mem)
    for facts, main, expected in (
        (Facts(slots=1), LOW, 4 * GIB),
        (Facts(slots=1), [Region(0, 2 * GIB, 0), Region(2 * GIB, MIB, 4 * GIB)], 5 * GIB),
        (taken, LOW, 4 * GIB + BLOCK.length),
    ):
        placed, left = place(PC, main, Choice([], [block]), [BLOCK, block], facts)
        assert left == []
        assert [each.regions for each in placed][-1] == [Region(0, GIB, expected)]
    for guest, facts in (
        (PC, Facts()),
        (PC, Facts(slots=2)),
        (PC, Facts(slots=0)),
        (PC, Facts(slots=1, hidden=True)),
        (Guest("pseries-7.2"), Facts(slots=1)),
        (Guest("pc-q35-7.2", base=GIB), Facts(slots=1)),
    ):
        placed, left = place(guest, LOW, Choice([], [block]), [block], facts)
        assert placed == []
        assert "--block dimm@ADDRESS places it" in left[0].why


def test_libvirt_says_where() -> None:
    """Broken: DIMMs of a libvirt guest would be left out, or be at another address."""
    blocks = [events.RamBlock(f"memdimm{number}", GIB) for number in (0, 1)]
    guest = Guest("pc-q35-7.2", plugged={"memdimm0": 6 * GIB, "memdimm1": 5 * GIB})
    placed, left = place(guest, LOW, Choice([], blocks), blocks, Facts(slots=2))
    assert left == []
    assert [each.regions[0].address for each in placed] == [6 * GIB, 5 * GIB]


@pytest.mark.parametrize(
    ("machine", "names", "main"),
    [
        ("pc-q35-7.2", ["mem0", "tpm-crb-cmd", "tpm-ppi"], "mem0"),
        ("isapc", ["vga.vram", "mem0", "pc.bios", "pc.rom"], "mem0"),
        ("virt-7.2", ["mem0", "virt.secure-ram", "virt.flash0", "mach-virt.tag"], "mem0"),
        ("virt", ["riscv_virt_board.mrom", "virt.flash1", "mem0"], "mem0"),
        ("sbsa-ref", ["sbsa.flash0", "sbsa-ref.secure-ram", "sbsa-ref.ram"], "sbsa-ref.ram"),
        ("pseries-2.1", ["vga.vram", "ppc_spapr.ram"], "ppc_spapr.ram"),
        ("versatilepb", ["versatile.flash", "versatile.ram"], "versatile.ram"),
        ("netduino2", ["STM32F205.flash", "STM32F205.sram"], "STM32F205.sram"),
        ("", ["pc.bios", "pc.ram", "vga.vram"], "pc.ram"),
        ("nonsense-1.0", ["mine", "vga.vram", "0000:00:03.0/virtio-net-pci.rom"], "mine"),
    ],
)
def test_names_of_blocks(machine: str, names: list[str], main: str) -> None:
    """Broken: a TPM's page, a screen's memory, a ROM or flash would be taken for memory."""
    blocks = [events.RamBlock(name, (20 - n) * MIB) for n, name in enumerate(names)]
    found = choose(blocks, table().find(machine) if machine else [])
    assert found.main is not None
    assert [block.name for block in found.main] == [main]
    assert found.others == []


def test_the_table_makes_sense() -> None:
    """Broken: the table would say of a block that it is memory, and that it is not, or be made of
    one QEMU alone."""
    assert any("7.2" in version for version in table().versions)
    assert any("10." in version for version in table().versions)
    for machine in table().machines:
        assert not {*machine.memory} & machine.others
        assert not any(is_of_a_device(name, [machine]) for name in machine.memory)
    assert len({name for machine in table().machines for name in machine.names}) > 280
