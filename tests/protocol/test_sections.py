"""Iterative sections beside `ram`, packages, and streams that tell little: what is refused."""

from __future__ import annotations

import tracemalloc

import pytest
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError, UnsupportedError
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.section_events import BitmapChunk
from vmferry.protocol.wire import stream
from vmferry.protocol.wire.marks import CommandType, SectionType

from tests.protocol.kinds import DEVICES, KINDS, piece
from tests.streams import (
    closing,
    description,
    device,
    opening,
    ram_part,
    ram_piece,
    ram_start,
    read,
    to_bytes,
)

START, PART, END = SectionType.START, SectionType.PART, SectionType.END


def _begun(name: str, version: int = 1) -> bytes:
    """Return a stream up to the payload of this section's first piece."""
    section = events.IterativeSection(0, START, 9, name, 0, version)
    return to_bytes([*opening(), section])


NAMES = b"\x05node0\x03bmp"
BEGUN = b"\x1c" + NAMES + b"\0\0\x10\0\x01"


@pytest.mark.parametrize(
    ("name", "before", "record", "message"),
    [
        ("block", b"", bytes(8), "is no record"),
        ("block", b"", b"\0\0\0\0\0\0\2\2", "is no record"),
        ("block", b"", bytes(7) + b"\x03\x05disk0", "is no record"),
        ("block", b"", bytes(7) + b"\x01\1\n", "a disk named b'\\\\n'"),
        ("dirty-bitmap", b"", b"\0", "flags 0x0 are no chunk"),
        ("dirty-bitmap", b"", b"\x81\x01", "flags 0x101 are no chunk"),
        ("dirty-bitmap", b"", b"\x30", "flags 0x30 are no chunk"),
        ("dirty-bitmap", b"", b"\x22", "flags 0x22 are no chunk"),
        ("dirty-bitmap", b"", b"\x20", "the bitmap '/' was not begun"),
        ("dirty-bitmap", b"", b"\x14\x03bmp\0\0\x10\0\x01", "without name"),
        ("dirty-bitmap", b"", b"\x1c" + NAMES + b"\0\0\0\x01\x01", "a bitmap of 1 bytes a bit"),
        ("dirty-bitmap", b"", b"\x1c" + NAMES + b"\0\0\x11\0\x01", "of 4352 bytes a bit"),
        ("dirty-bitmap", BEGUN, BEGUN, "'node0/bmp', without name, twice"),
        ("dirty-bitmap", BEGUN, b"\x44\x01x" + bytes(20), "'node0/x' was not begun"),
        (
            "dirty-bitmap",
            BEGUN,
            b"\x40" + bytes(12) + b"\xff" * 8,
            "a chunk of 18446744073709551615 bytes",
        ),
        ("spapr/htab", b"", b"\0\0\0\x2f", "a table of 2..47 bytes"),
        ("spapr/htab", b"", b"\xff\xff\xff\xfe", "a table of 2..-2 bytes"),
        ("spapr/htab", b"", bytes(4), "a table that was not announced"),
        ("s390-storage_attributes", b"", bytes(8), "is no record"),
        ("s390-storage_attributes", b"", b"\0\0\0\0\0\0\x10\x01", "is no record"),
        ("s390-storage_attributes", b"", bytes(7) + b"\x04", "that they are incomplete"),
        ("s390-storage_attributes", b"", bytes(7) + b"\2" + b"\xff" * 8, "a record of 1844"),
    ],
)
def test_bad_records_are_refused_where_they_stand(
    name: str, before: bytes, record: bytes, message: str
) -> None:
    """Broken: memory would be taken for what lies, or an error would not say where."""
    data = _begun(name, 0 if name.startswith("s390") else 1) + before + record
    with pytest.raises(StreamError, match=message) as caught:
        read(data + bytes(40))
    assert caught.value.offset == len(data) - len(record)
    assert caught.value.section == name


def test_entries_outside_the_table() -> None:
    """Broken: a reader would put page table entries outside their table."""
    data = _begun("spapr/htab") + b"\0\0\0\x12" + stream.section_footer(9)
    data += stream.SectionContinuation.build({"type": PART, "section_id": 9}) + bytes(4)
    assert _read_until_early_end(data + b"\0\0\x3f\xff\0\1\0\0") == "records"
    with pytest.raises(StreamError, match="entries from 16383 on, outside the table") as caught:
        read(data + b"\0\0\x3f\xff\0\1\0\1")
    assert caught.value.offset == len(data)


def _read_until_early_end(data: bytes) -> str:
    with pytest.raises(StreamError, match="the stream ends early, in: ") as caught:
        read(data)
    return str(caught.value).rpartition(": ")[2]


def test_names_in_force() -> None:
    """Broken: bits would be taken for those of another bitmap."""
    found = read(to_bytes(KINDS["dirty-bitmap"]))
    chunks = [event for event in found if isinstance(event, BitmapChunk)]
    names = ["backup", "other", "backup", "backup", "backup", "backup", "backup"]
    assert [chunk.bitmap for chunk in chunks] == names
    assert [chunk.node for chunk in chunks] == ["node0"] * 7


def test_a_section_of_another_version_is_passed() -> None:
    """Broken: a section would be read by the rules of another version."""
    unknown = piece(START, "block", events.OpaquePiece(0, b"whatever"), version=7)
    ended = piece(END, "block", events.OpaquePiece(0, b""), version=7)
    data = to_bytes([*opening(), *unknown, *ended, *closing(DEVICES)])
    found = read(data)
    assert [e.payload for e in found if isinstance(e, events.OpaquePiece)] == [b"whatever", b""]
    assert to_bytes(found) == data


def test_an_unknown_section_is_bounded() -> None:
    """Broken: a section that never ends would take all memory."""
    data = _begun("vfio") + bytes(1 << 20)
    with pytest.raises(StreamError, match="more than 65536 bytes of an unknown section") as caught:
        read(data, max_device_state=1 << 16)
    assert caught.value.section == "vfio"


def _piece_of(name: str, payload: bytes, version: int = 1) -> list[events.Event]:
    return piece(START, name, events.OpaquePiece(0, payload), version=version)


def _first_piece(kind: str) -> list[events.Event]:
    """Return the first piece of the section beside `ram`, with its footer."""
    made = KINDS[kind]
    start = next(n for n, e in enumerate(made) if type(e) is events.IterativeSection)
    return made[start : 1 + next(n for n, e in enumerate(made) if e == events.Footer(0, 9))]


@pytest.mark.parametrize("step", [997, 1 << 20])
@pytest.mark.parametrize(
    "begun",
    [
        _piece_of("pbs-state", (20).to_bytes(8, "big") + b"\x7e\0\0\0\x09\1\0\0\0\2\3ram......"),
        _piece_of("pbs-state", bytes(8)),
        _piece_of("pbs-state", b"another version", version=2),
        _piece_of("vfio", b"state"),
        _first_piece("dirty-bitmap"),
        _first_piece("htab"),
        _first_piece("block"),
    ],
)
def test_a_section_that_only_begins(begun: list[events.Event], step: int) -> None:
    """Broken: streams of Proxmox VE would be refused, as would others that stock QEMUs load."""
    made = [*opening()[:3], *begun, *ram_start(), *closing(DEVICES)]
    data, reader = to_bytes(made), StreamReader()
    found = [e for at in range(0, len(data), step) for e in reader.feed(data[at : at + step])]
    assert to_bytes(found + reader.close()) == data


def test_ram_that_only_begins() -> None:
    """Broken: a stream without the last pages would be taken for whole."""
    with pytest.raises(StreamError, match="ends before its section 'ram' does"):
        read(to_bytes([*opening(), *closing()[3:]]))


def test_an_unknown_section_without_footers_is_named() -> None:
    """Broken: what follows it would be misread."""
    unknown = events.IterativeSection(0, START, 9, "vfio")
    data = to_bytes([*KINDS["no-footers"][:5], unknown]) + bytes(100)
    with pytest.raises(UnsupportedError, match=r"'vfio'\): this kind of section cannot be passed"):
        read(data)


def test_footers_are_everywhere_or_nowhere() -> None:
    """Broken: damage would pass for an old machine type's stream."""
    some = [*opening(), *ram_part()[:-1], *ram_piece(END)]
    with pytest.raises(StreamError, match="byte 0x03 in place of a section's footer"):
        read(to_bytes(some))
    with pytest.raises(StreamError, match="byte 0x7e in place of a section's footer"):
        read(to_bytes([*KINDS["no-footers"][:5], *ram_part()]))


def test_devices_that_no_description_fits_stay_whole() -> None:
    """Broken: devices of an old machine type would be cut at wrong places, or refused."""
    *before, first, second, eof, _ = KINDS["no-footers"]
    wrong = description([device(3, "timer", b"1234")])
    data = to_bytes([*before, first, second, eof, wrong])
    unsplit = [e for e in read(data) if isinstance(e, events.UnsplitDevices)]
    assert [e.data for e in unsplit] == [to_bytes([first, second])]


def test_devices_behind_a_package() -> None:
    """Broken: a section could reach out of its package, and what follows be read twice."""
    made = KINDS["postcopy"]
    at = next(n for n, e in enumerate(made) if isinstance(e, events.Command) and e.command == 7)
    command = made[at]
    assert isinstance(command, events.Command)
    true = int.from_bytes(command.data, "big")
    again = events.Command(0, CommandType.PACKAGED, bytes(4))
    for length, more, message in [
        (true - 1, [], "the package before ended at 0x[0-9a-f]+, within a section"),
        (true + 1, [], "the package before ended at 0x[0-9a-f]+, within a section"),
        (1 << 31, [], "the stream ends within a package"),
        (true, [again], "a package within a package"),
    ]:
        package = events.Command(0, CommandType.PACKAGED, length.to_bytes(4, "big"))
        data = to_bytes([*made[:at], package, *more, *made[at + 1 :]])
        with pytest.raises(StreamError, match=message):
            read(data)


@pytest.mark.parametrize(
    ("command", "data", "message"),
    [
        (CommandType.PING, b"abc", "a PING command of 3 bytes"),
        (CommandType.POSTCOPY_LISTEN, b"a", "a POSTCOPY_LISTEN command of 1 bytes"),
        (CommandType.POSTCOPY_RUN, b"a", "a POSTCOPY_RUN command of 1 bytes"),
        (CommandType.PACKAGED, bytes(5), "a PACKAGED command of 5 bytes"),
        (CommandType.POSTCOPY_RAM_DISCARD, b"\0\3abc\0" + bytes(15), "command of 21 bytes"),
        (
            CommandType.POSTCOPY_RAM_DISCARD,
            b"\0\3abc\0" + bytes(16),
            "block 'abc', outside its RAM",
        ),
        (
            CommandType.POSTCOPY_RAM_DISCARD,
            b"\0\6pc.ram\0" + bytes(8) + b"\xff" * 8,
            "0xffffffffffffffff of block 'pc.ram', outside",
        ),
        (99, b"", "unknown command 99"),
    ],
)
def test_bad_commands_are_refused(command: int, data: bytes, message: str) -> None:
    """Broken: a command that makes no sense would be obeyed."""
    before = to_bytes(opening())
    with pytest.raises(StreamError, match=message) as caught:
        read(before + to_bytes([events.Command(0, command, data)]))
    assert caught.value.offset == len(before)


def test_disks_take_constant_memory() -> None:
    """Broken: a stream with disks would need as much memory as these are large."""
    begin = piece(START, "block")[:1]
    blocks = [e for e in KINDS["block"] if type(e).__name__ == "DiskBlock"][:1]
    reader, block = StreamReader(), to_bytes(blocks)
    reader.feed(to_bytes([*opening(), *begin]))
    tracemalloc.start()
    try:
        for _ in range(40):
            assert len(reader.feed(block)) == 1
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
