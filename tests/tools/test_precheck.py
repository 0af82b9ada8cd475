"""`vmferry precheck` between two streams: each rule, with and without what breaks it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.tools.precheck.device_types import read_types
from vmferry.tools.precheck.facts import Facts, facts_of
from vmferry.tools.precheck.findings import Kind
from vmferry.tools.precheck.pci_space import first_difference, space_of, vectors
from vmferry.tools.precheck.rules import compare

from tests import streams
from tests.tools.running import Vmferry

PAGE = 4096
WORD = {"name": "word", "type": "uint32", "size": 4}
LOG = {"name": "log", "type": "buffer", "size": 4}


@dataclass(frozen=True)
class Side:
    """A guest with one device, which has a state of words."""

    machine: str = "pc-i440fx-7.2"
    blocks: tuple[events.RamBlock, ...] = streams.BLOCKS
    name: str = "dev"
    instance_id: int = 0
    version: int = 2
    fields: Sequence[Mapping[str, Any]] = (WORD,)
    subsections: Sequence[Mapping[str, Any]] = ()
    payload: bytes = bytes(4)

    def stream(self) -> bytes:
        """Return the stream of the guest."""
        section = replace(
            streams.device(3, self.name, self.payload, self.instance_id), version=self.version
        )
        described = {
            "name": self.name,
            "instance_id": self.instance_id,
            "vmsd_name": "dev",
            "version": self.version,
            "fields": self.fields,
            **({"subsections": self.subsections} if self.subsections else {}),
        }
        opening = [
            replace(event, machine=self.machine)
            if isinstance(event, events.Configuration)
            else event
            for event in streams.opening(self.blocks)
        ]
        description = streams.description_of({"devices": [described]})
        return streams.to_bytes([*opening, *streams.closing([section])[:-1], description])

    def facts(self) -> Facts:
        """Return the facts in the stream."""
        return facts_of(streams.read(self.stream()))


SUBSECTION = {"vmsd_name": "dev/sub", "version": 1, "fields": [WORD]}
WITH_SUBSECTION = Side(
    subsections=[SUBSECTION], payload=bytes(4) + b"\5\7dev/sub\0\0\0\1" + bytes(4)
)
NEWER = Side(machine="pc-i440fx-10.0")
TABLES = "/rom@etc/acpi/tables"
CHANGES: dict[str, tuple[Side, Side, list[Kind]]] = {
    "nothing": (Side(), Side(), []),
    "machine": (Side(), NEWER, [Kind.MACHINE]),
    "machine alone": (replace(Side(), name="other"), NEWER, [Kind.MACHINE]),
    "block": (Side(), Side(blocks=streams.BLOCKS[:1]), [Kind.NO_BLOCK]),
    "more blocks": (Side(blocks=streams.BLOCKS[:1]), Side(), []),
    "block size": (
        Side(),
        Side(blocks=(events.RamBlock("pc.ram", 128 * PAGE), streams.BLOCKS[1])),
        [Kind.BLOCK_SIZE],
    ),
    "block that is adjusted": (
        Side(blocks=(events.RamBlock(TABLES, 32 * PAGE),)),
        Side(blocks=(events.RamBlock(TABLES, 16 * PAGE),)),
        [],
    ),
    "block that is adjusted too far": (
        Side(blocks=(events.RamBlock(TABLES, 4 << 20),)),
        Side(blocks=(events.RamBlock(TABLES, 16 * PAGE),)),
        [Kind.BLOCK_SIZE],
    ),
    "device": (Side(), Side(name="other"), [Kind.NO_SECTION, Kind.EXTRA]),
    "instance": (Side(instance_id=1), Side(), [Kind.NO_INSTANCE, Kind.EXTRA]),
    "version": (Side(version=3), Side(), [Kind.TOO_NEW]),
    "older version": (Side(version=1), Side(), []),
    "fields": (
        Side(fields=(WORD, {**WORD, "name": "more"}), payload=bytes(8)),
        Side(),
        [Kind.LAYOUT],
    ),
    "fields of an older version": (
        Side(version=1),
        Side(fields=(WORD, {**WORD, "name": "more"}), payload=bytes(8)),
        [],
    ),
    "bytes that may be more": (
        Side(fields=(WORD, {**LOG, "size": 8}), payload=bytes(12)),
        Side(fields=(WORD, LOG), payload=bytes(8)),
        [],
    ),
    "bytes that another version describes": (
        Side(fields=(WORD, LOG), payload=bytes(8)),
        Side(fields=(WORD, {**WORD, "name": "new"}), payload=bytes(8)),
        [],
    ),
    "subsection": (WITH_SUBSECTION, Side(), []),
    "equal": (
        Side(fields=({**WORD, "type": "uint32 equal"},), payload=b"\0\0\0\1"),
        Side(fields=({**WORD, "type": "uint32 equal"},), payload=b"\0\0\0\2"),
        [Kind.FIELD],
    ),
    "at most": (
        Side(fields=({**WORD, "type": "int32 le"},), payload=b"\0\0\0\1"),
        Side(fields=({**WORD, "type": "int32 le"},), payload=b"\0\0\0\2"),
        [],
    ),
    "more than at most": (
        Side(fields=({**WORD, "type": "int32 le"},), payload=b"\0\0\0\3"),
        Side(fields=({**WORD, "type": "int32 le"},), payload=b"\0\0\0\2"),
        [Kind.FIELD],
    ),
}
"""Sides A and B of each change, and the findings."""


@pytest.mark.parametrize("change", CHANGES)
def test_each_rule(change: str) -> None:
    """Broken: a migration would be sent that does not load, or one that loads would not be."""
    a, b, kinds = CHANGES[change]
    assert [finding.kind for finding in compare(a.facts(), b.facts())] == kinds


@pytest.mark.parametrize("name", ["x-ignore-shared", "mapped-ram"])
def test_capabilities_are_the_same(name: str) -> None:
    """Broken: a file that only a QEMU with a capability reads would be given to one without it."""
    plain = Side().facts()
    switched = replace(plain, capabilities=frozenset((name, "xbzrle")))
    for a, b in ((plain, switched), (switched, plain)):
        assert [finding.kind for finding in compare(a, b)] == [Kind.CAPABILITY]
    assert compare(switched, switched) == []


def dumped(oldest: int, *subsections: str) -> Mapping[str, Any]:
    """Return QEMU's description of a device type that is saved as `dev`."""
    inner = [{"name": name, "minimum_version_id": 1} for name in subsections]
    return {
        "d": {"Description": {"name": "dev", "minimum_version_id": oldest, "Subsections": inner}}
    }


@pytest.mark.parametrize(
    ("a", "types", "kinds"),
    [
        (WITH_SUBSECTION, dumped(1, "dev/sub"), []),
        (WITH_SUBSECTION, dumped(1, "dev/other"), [Kind.SUBSECTION]),
        (Side(version=1), dumped(1), []),
        (Side(version=1), dumped(2), [Kind.TOO_OLD]),
        (Side(version=1), {"d": {"Description": {"name": 3}}, "e": 4}, []),
    ],
)
def test_what_b_says_of_its_device_types_counts(
    a: Side, types: Mapping[str, Any], kinds: list[Kind]
) -> None:
    """Broken: a subsection or a version that B does not read would be noticed by B alone."""
    b = replace(Side().facts(), types=read_types(types))
    assert [finding.kind for finding in compare(a.facts(), b)] == kinds


def space(**bytes_at: int) -> bytes:
    """Return a configuration space with an MSI-X capability of 4 vectors and a region of 4 KiB."""
    made = bytearray(256)
    made[0:4], made[0x06], made[0x0A], made[0x34] = b"\xf4\x1a\x00\x10", 0x10, 2, 0x40
    made[0x40:0x4C] = b"\x11\x00\x03\x80" + b"\x01\0\0\0" + b"\x01\x08\0\0"
    for place, value in bytes_at.items():
        made[int(place.removeprefix("at_"), 16)] = value
    return bytes(made)


SPACES: dict[str, tuple[int, int, str | None]] = {
    "device": (0x02, 1, "device id"),
    "command": (0x04, 7, None),
    "status": (0x06, 0, "capabilities"),
    "other status": (0x06, 0x18, None),
    "revision": (0x08, 1, "revision"),
    "class": (0x0A, 1, "class"),
    "address": (0x12, 0x7F, None),
    "address in the region": (0x10, 0x10, "size of region 0"),
    "region of unknown size": (0x14, 1, None),
    "subsystem": (0x2C, 1, None),
    "line": (0x3C, 11, None),
    "vectors": (0x42, 7, "MSI-X"),
    "switches of MSI-X": (0x43, 0, None),
    "kind of a capability": (0x40, 5, "capabilities"),
}
"""The byte in which A differs, its value there, and what B refuses."""


@pytest.mark.parametrize("case", SPACES)
def test_what_the_guest_cannot_write_is_compared(case: str) -> None:
    """Broken: another PCI device in the same place would be noticed by B alone."""
    place, value, what = SPACES[case]
    found = first_difference(space(**{f"at_{place:x}": value}), space(), {0: 4096})
    assert (None if found is None else found.what) == what


def test_configuration_space_is_found_in_the_state() -> None:
    """Broken: no PCI device would be compared, or what is none."""
    assert space_of(b"\0\0\0\2" + space() + b"rest") == space()
    assert space_of(b"\0\0\0\2" + space()[:200]) is None
    assert space_of(b"\0\0\0\1" + space()) is None
    assert vectors(space()) == 4
    assert vectors(bytes(256)) is None


def test_command(vmferry: Vmferry) -> None:
    """Broken: the exit status would not say whether A loads, or the lines would not say why."""
    smaller = Side(blocks=(events.RamBlock("pc.ram", 128 * PAGE),))
    a, b = vmferry.write("a", Side().stream()), vmferry.write("b", smaller.stream())
    assert vmferry.call("precheck", a, a).stdout == "would load\n"
    refused = vmferry.call("precheck", a, b)
    assert refused.exit_code == 1
    assert "pc.ram: 1.0 MiB in A, 512.0 KiB in B [-m 1M]" in refused.stdout
    told = json.loads(vmferry.call("precheck", a, b, "--json").stdout)
    assert told["loads"] is False
    first = {"kind": "block-size", "where": "pc.ram", "a": 256 * PAGE, "b": 128 * PAGE}
    assert first.items() <= told["findings"][0].items()


def test_wrong_usage(vmferry: Vmferry) -> None:
    """Broken: a script could not tell wrong usage from a guest that does not load."""
    stream = vmferry.write("a", Side().stream())
    assert vmferry.call("precheck", stream).exit_code == 2
    assert vmferry.call("precheck", "--trial", stream, stream).exit_code == 2
    assert vmferry.call("precheck", "--trial", "qemu:a", "qemu:b").exit_code == 2


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("no such file", "no such file: No such file or directory"),
        ("qemu:no-such-socket", "no-such-socket: no QEMU to talk to"),
        ("no-such-program -M pc", "no-such-program: No such file or directory"),
        ("qemu -M 'broken", "No closing quotation"),
    ],
)
def test_side_that_cannot_be_read(vmferry: Vmferry, side: str, message: str) -> None:
    """Broken: a side that is mistyped would end with a traceback, or count as compared."""
    ran = vmferry.run("precheck", vmferry.write("a", Side().stream()), side)
    assert ran.status == 1
    assert message in ran.error
