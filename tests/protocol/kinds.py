"""Small whole streams, one of each kind of what a stream may hold beside plain and zero pages."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from vmferry.protocol import events
from vmferry.protocol.pages.block_entry import block_entry
from vmferry.protocol.pages.mapped_pages import list_pieces
from vmferry.protocol.section_events import (
    BitmapBits,
    BitmapChunk,
    BitmapStart,
    DiskBlock,
    DiskProgress,
    EndOfDisks,
    HtabChunk,
    HtabHeader,
    StorageAttributes,
)
from vmferry.protocol.wire import stream
from vmferry.protocol.wire.dirty_bitmap import BitmapFlag
from vmferry.protocol.wire.mapped_ram import HEADER_SIZE, MappedRam, bitmap_size, lay_out
from vmferry.protocol.wire.marks import CommandType, SectionType
from vmferry.protocol.wire.storage_attributes import AttributeFlag

from tests.streams import (
    PAGE,
    closing,
    compressed_run,
    description,
    device,
    opening,
    page_run,
    ram_part,
    ram_piece,
    ram_start,
    to_bytes,
    xbzrle_run,
    zeros,
)

START, PART, END = SectionType.START, SectionType.PART, SectionType.END
DEVICES = (device(3, "timer", b"\x01" * 20), device(4, "cpu", bytes(range(256))))


def piece(
    kind: SectionType, name: str, *records: events.Event, version: int = 1
) -> list[events.Event]:
    """Return one piece of the iterative section 9 around these records."""
    return [events.IterativeSection(0, kind, 9, name, 0, version), *records, events.Footer(0, 9)]


def _with_section(*pieces: list[events.Event]) -> list[events.Event]:
    """Return the pieces of a section between those of `ram`."""
    ram = [ram_part(page_run(0, [number])) for number in range(len(pieces))]
    between = [event for both in zip(pieces, ram, strict=True) for each in both for event in each]
    return [*opening(answers=True), *zeros(), *between, *closing(DEVICES)]


def _block() -> list[events.Event]:
    data = bytes(range(256)) * (1 << 12)
    blocks = (DiskBlock(0, "disk0", 2048, data), DiskBlock(0, "disk1", 0, None))
    return _with_section(
        piece(START, "block", EndOfDisks(0)),
        piece(PART, "block", *blocks, DiskProgress(0, 50), EndOfDisks(0)),
        piece(END, "block", DiskProgress(0, 100), EndOfDisks(0)),
    )


def _bitmap_chunk(
    flags: BitmapFlag,
    node: str,
    bitmap: str,
    body: BitmapStart | BitmapBits | None = None,
    size: int = 1,
) -> BitmapChunk:
    return BitmapChunk(0, flags, node, bitmap, body, size)


def _dirty_bitmap() -> list[events.Event]:
    flag, node, bitmap = BitmapFlag, "node0", "backup"
    names = flag.DEVICE_NAME | flag.BITMAP_NAME
    bits, zeros = BitmapBits(0, 65536, bytes(range(32))), BitmapBits(65536, 9, None)
    end = _bitmap_chunk(flag.EOS, node, bitmap)
    return _with_section(
        piece(
            START,
            "dirty-bitmap",
            _bitmap_chunk(flag.START | names, node, bitmap, BitmapStart(65536, 1)),
            _bitmap_chunk(
                flag.START | flag.BITMAP_NAME, node, "other", BitmapStart(512, 3), size=2
            ),
            _bitmap_chunk(flag.BITS | flag.BITMAP_NAME, node, bitmap, bits),
            end,
        ),
        piece(
            PART,
            "dirty-bitmap",
            _bitmap_chunk(flag.BITS | flag.ZEROES, node, bitmap, zeros, size=4),
            end,
        ),
        piece(END, "dirty-bitmap", _bitmap_chunk(flag.COMPLETE | flag.EOS, node, bitmap)),
    )


def _htab() -> list[events.Event]:
    end = HtabChunk(0, 0, 0, b"")
    return _with_section(
        piece(START, "spapr/htab", HtabHeader(0, 18)),
        piece(
            PART,
            "spapr/htab",
            HtabHeader(0, 0),
            HtabChunk(0, 5, 2, bytes(range(48))),
            HtabChunk(0, 100, 7, b""),
            end,
        ),
        piece(END, "spapr/htab", HtabHeader(0, -1)),
    )


def _storage_attributes() -> list[events.Event]:
    name, end = "s390-storage_attributes", StorageAttributes(0, AttributeFlag.EOS)
    values = StorageAttributes(0, AttributeFlag.MORE, 5 * 4096, b"\1\2\3")
    return _with_section(
        piece(START, name, end, version=0),
        piece(PART, name, values, end, version=0),
        piece(END, name, values, StorageAttributes(0, AttributeFlag.DONE), end, version=0),
    )


def _opaque() -> list[events.Event]:
    return _with_section(
        piece(START, "vfio", events.OpaquePiece(0, b"\x02\0\0\0\x09 not the end")),
        piece(PART, "vfio", events.OpaquePiece(0, b"")),
        piece(END, "vfio", events.OpaquePiece(0, bytes(300))),
    )


def _pages() -> list[events.Event]:
    page = zlib.compress(bytes(PAGE))
    return [
        *opening(answers=True),
        *zeros(),
        *ram_part(
            compressed_run(0, {3: page, 4: page}),
            xbzrle_run(0, {3: b"\x05\x01a", 4: b"\0\x01b"}, continued=True),
            page_run(1, [0], 7),
            compressed_run(1, {1: page}, continued=True),
        ),
        *closing(DEVICES),
    ]


def _shared() -> list[events.Event]:
    blocks = (events.RamBlock("ram", 8 * PAGE, address=0), events.RamBlock("rom", PAGE, address=1))
    head = events.Configuration(0, "pc", None, ("x-ignore-shared",))
    return [events.Header(0), head, *ram_start(blocks), *closing(DEVICES, early=())]


def _postcopy() -> list[events.Event]:
    package: list[events.Event] = [
        events.Command(0, CommandType.POSTCOPY_LISTEN),
        *DEVICES,
        events.Command(0, CommandType.POSTCOPY_RUN),
    ]
    advice = {"block_page_sizes": PAGE, "page_size": PAGE, "end": None}
    discard = {
        "version": None,
        "block": b"pc.ram",
        "ranges": [{"start": 0, "length": PAGE}, {"start": 8 * PAGE, "length": 2 * PAGE}],
        "end": None,
    }
    length = {"length": len(to_bytes(package)), "end": None}
    return [
        *opening()[:2],
        events.Command(0, CommandType.POSTCOPY_ADVISE, stream.PostcopyAdvice.build(advice)),
        *ram_start(),
        *zeros(),
        *ram_part(page_run(0, range(10))),
        events.Command(0, CommandType.POSTCOPY_RAM_DISCARD, stream.RamDiscard.build(discard)),
        events.Command(0, CommandType.PACKAGED, stream.PackageLength.build(length)),
        *package,
        *ram_part(page_run(0, [0, 8, 9])),
        *ram_piece(END),
        events.EndOfStream(0),
    ]


def _no_footers() -> list[events.Event]:
    """Return a stream of a machine type before 2.4: without footers and configuration."""
    devices = [events.DeviceSection(**{**vars(each), "footer": False}) for each in DEVICES]
    ram = [
        *ram_start()[:-1],
        events.NoFooters(0),
        *zeros()[:-1],
        *ram_part(page_run(0, [1, 2]))[:-1],
        *ram_part(page_run(1, [1], 0))[:-1],
        *ram_piece(END)[:-1],
    ]
    return [events.Header(0), *ram, *devices, events.EndOfStream(0), description(devices)]


def _nothing_told() -> list[events.Event]:
    """Return a stream without configuration, footers and description."""
    *before, _, _, _, _ = _no_footers()
    unsplit = to_bytes(_no_footers()[-4:-2])
    return [*before, events.UnsplitDevices(0, unsplit), events.EndOfStream(0)]


def closely(length: int, page_size: int, behind_header: int) -> MappedRam:
    """Return a place in a mapped-ram file without the room that QEMU leaves."""
    behind_bitmap = behind_header + bitmap_size(length, page_size)
    return MappedRam(page_size, behind_header, behind_bitmap)


def mapped(
    pages: dict[str, list[int]],
    *,
    page_size: int = PAGE,
    file_offset: int = 0,
    count: int = 700,
    shared: str | None = None,
    place_of: Callable[[int, int, int], MappedRam] = lay_out,
) -> tuple[bytes, dict[str, bytes]]:
    """Return a mapped-ram stream, at `file_offset` of its file, and its RAM.

    `pages`: numbers of the pages that are not zero, by the name of the block of `count` pages.
    `shared`: the name of one more block, the first, which is left out (x-ignore-shared).
    """
    capable = ("mapped-ram",) if shared is None else ("mapped-ram", "x-ignore-shared")
    address = None if shared is None else 0
    head: list[events.Event] = [
        events.Header(0),
        events.Configuration(0, "pc", page_size, capable),
        events.RamSection(0, START, 2),
    ]
    data, length = bytearray(to_bytes(head)), count * page_size
    offset = at = len(data)
    at += 8
    blocks, images, areas = [], {}, []
    if shared is not None:
        blocks.append(events.RamBlock(shared, length, None, 0, MappedRam(page_size, 0, 0)))
        at += len(block_entry(blocks[0]))
    for number, (name, present) in enumerate(pages.items()):
        behind_header = at + 1 + len(name) + 8 + (0 if shared is None else 8) + HEADER_SIZE
        place = place_of(length, page_size, file_offset + behind_header)
        blocks.append(events.RamBlock(name, length, None, address, place))
        bits, image = np.zeros(-(-count // 64) * 64, np.uint8), np.zeros((count, page_size), "u1")
        bits[present] = 1
        image[present] = np.random.default_rng(number).integers(1, 256, (len(present), page_size))
        images[name] = image.tobytes()
        areas.append((behind_header, np.packbits(bits, bitorder="little").tobytes()))
        areas.append((place.pages_offset - file_offset, images[name]))
        at = place.pages_offset - file_offset + length
    listed = events.RamBlocks(offset, length * len(blocks), tuple(blocks), page_size)
    for start, piece_of_list in [*list_pieces(listed), *areas]:
        data += bytes(max(0, start + len(piece_of_list) - len(data)))
        data[start : start + len(piece_of_list)] = piece_of_list
    rest = [*ram_piece(START)[1:], *ram_part(), *ram_piece(END), *DEVICES]
    described = description(DEVICES, page_size=page_size)
    return bytes(data + to_bytes([*rest, events.EndOfStream(0), described])), images


KINDS: dict[str, list[events.Event]] = {
    "block": _block(),
    "dirty-bitmap": _dirty_bitmap(),
    "htab": _htab(),
    "storage-attributes": _storage_attributes(),
    "opaque": _opaque(),
    "pages": _pages(),
    "shared": _shared(),
    "postcopy": _postcopy(),
    "no-footers": _no_footers(),
    "nothing-told": _nothing_told(),
}
