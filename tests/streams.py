"""Build small migration streams, event by event, and look at what was read of them.

Every test that needs a stream takes it from here. `BLOCKS` is the RAM of the guest in them. `SMALL`
and `WHOLE` are streams of that guest, as is `every_event`; tests make others of the same pieces.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol import events
from vmferry.protocol.errors import StreamError
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire.marks import CommandType, SectionType
from vmferry.protocol.writer import StreamWriter
from vmferry.sender.coordinator import Sender

PAGE = 4096
"""Bytes of a page, where a test does not say otherwise."""

RAM_ID = 2
"""The id of the section `ram`."""

Blocks = Sequence[events.RamBlock]

BLOCKS = (events.RamBlock("pc.ram", 256 * PAGE), events.RamBlock("/rom@etc/acpi", 8 * PAGE))
"""The RAM of the guest."""

START, PART, END = SectionType.START, SectionType.PART, SectionType.END


def to_bytes(found: Iterable[events.Event]) -> bytes:
    """Return the stream that these events make."""
    return b"".join(map(StreamWriter().write, found))


def read(data: bytes, step: int = 1 << 40, **options: Any) -> list[events.Event]:
    """Return the events of a whole stream, which a reader gets in pieces of `step` bytes."""
    reader = StreamReader(**options)
    found = [e for at in range(0, len(data), step) for e in reader.feed(data[at : at + step])]
    return found + reader.close()


def read_damaged(data: bytes) -> None:
    """Read a stream that may be damaged; an error has to be one line that says where, and what was
    read before it has to be in the stream."""
    found, error = [], None
    try:
        found = read(data, max_device_state=1 << 16)
    except StreamError as caught:
        error = caught
    if error is not None:
        assert 0 <= error.offset <= len(data)
        assert "\n" not in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert data.startswith(to_bytes(found))


def read_file(path: Path, **options: Any) -> list[events.Event]:
    """Return the events of the stream in this file, which have to make its bytes again."""
    data = path.read_bytes()
    found = read(data, **options)
    assert to_bytes(found) == data
    return found


def device(
    section_id: int, name: str, payload: bytes, instance_id: int = 0, version: int = 1
) -> events.DeviceSection:
    """Return the section of a device."""
    return events.DeviceSection(0, section_id, name, instance_id, version, payload)


RETURN_PATH = events.Command(0, CommandType.OPEN_RETURN_PATH)
"""The source's wish for an answer."""

EARLY = device(1, "early", b"virtio-mem")
"""Section of the device before RAM."""

DEVICES = (
    device(3, "cpu", bytes(range(256)) * 4),
    device(4, "cpu", b"\x7e\0\0\0\x04\x04" * 9, instance_id=1),
    device(5, "0000:00:02.0/vga", b""),
)
"""The devices behind RAM: a large one, one that holds what looks like footers, and an empty one."""


def description_of(value: dict[str, Any]) -> events.Description:
    """Return the description that says this."""
    return events.Description(0, json.dumps(value).encode(), value)


def description(sections: Iterable[events.DeviceSection], **more: Any) -> events.Description:
    """Return a description of these devices, each of one field, laid out as QEMU's."""
    devices = [
        {
            "name": section.name,
            "instance_id": section.instance_id,
            "vmsd_name": section.name,
            "version": section.version,
            "fields": [{"name": "data", "type": "buffer", "size": len(section.payload)}],
        }
        for section in sections
    ]
    return description_of({"page_size": PAGE, "devices": devices, **more})


def ram_piece(kind: SectionType, *records: events.Event) -> list[events.Event]:
    """Return one piece of the section `ram` with these records."""
    section = events.RamSection(0, kind, RAM_ID)
    return [section, *records, events.EndOfRam(0), events.Footer(0, RAM_ID)]


def ram_part(*records: events.Event) -> list[events.Event]:
    """Return a piece of the section `ram` with these records, neither the first nor the last."""
    return ram_piece(PART, *records)


def listed(blocks: Blocks, page_size: int = PAGE) -> events.RamBlocks:
    """Return the list of these blocks."""
    total = sum(block.length for block in blocks)
    return events.RamBlocks(0, total, tuple(blocks), page_size)


def ram_start(blocks: Blocks = BLOCKS, page_size: int = PAGE) -> list[events.Event]:
    """Return the first piece of the section `ram`, which lists the blocks."""
    return ram_piece(START, listed(blocks, page_size))


def page_run(
    index: int,
    numbers: Iterable[int],
    fill: int | None = None,
    continued: bool = False,
    *,
    blocks: Blocks = BLOCKS,
    page_size: int = PAGE,
    seed: int | None = None,
) -> events.PageRun:
    """Return pages `numbers` of a block: filled with the byte `fill`, or each of its own content.

    `seed` chooses the content; by default it is the same for the same block.
    """
    offsets, data = _offsets(numbers, page_size), None
    if fill is None:
        rng = np.random.default_rng(index + 5 if seed is None else seed)
        data = rng.integers(0, 256, (len(offsets), page_size), np.uint8)
    return events.PageRun(0, blocks[index], index, offsets, data, fill or 0, continued)


def contents(run: events.PageRun) -> bytes:
    """Return what the pages of a run with contents of their own hold, one behind the other."""
    assert run.data is not None
    return run.data.tobytes()


def zeros(blocks: Blocks = BLOCKS) -> list[events.Event]:
    """Return a piece with every page of these blocks, as zero."""
    runs = (
        page_run(index, range(block.length // PAGE), 0, blocks=blocks)
        for index, block in enumerate(blocks)
    )
    return ram_part(*runs)


def xbzrle_run(
    index: int, encodings: Mapping[int, bytes], continued: bool = False
) -> events.XbzrleRun:
    """Return XBZRLE records: of pages of a block, by their numbers, the encoding of each."""
    return events.XbzrleRun(0, BLOCKS[index], index, *_packed(encodings), continued)


def changes(index: int, new: Mapping[int, tuple[int, bytes]]) -> events.XbzrleRun:
    """Return XBZRLE records: of pages of a block, where (below 128) new bytes begin, and these."""
    return xbzrle_run(
        index, {number: bytes([at, len(data)]) + data for number, (at, data) in new.items()}
    )


def compressed_run(
    index: int, data: Mapping[int, bytes], continued: bool = False
) -> events.CompressedRun:
    """Return COMPRESS_PAGE records: of pages of a block, by their numbers, the data of each."""
    return events.CompressedRun(0, BLOCKS[index], index, *_packed(data), continued)


def zipped(index: int, beginnings: Mapping[int, bytes]) -> events.CompressedRun:
    """Return COMPRESS_PAGE records: of pages of a block, what they begin with before zeros."""
    return compressed_run(
        index, {n: zlib.compress(page.ljust(PAGE, b"\0")) for n, page in beginnings.items()}
    )


def _offsets(numbers: Iterable[int], page_size: int = PAGE) -> npt.NDArray[np.uint64]:
    return np.array(list(numbers), np.uint64) * np.uint64(page_size)


def _packed(
    encodings: Mapping[int, bytes],
) -> tuple[
    npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.intp], npt.NDArray[np.intp]
]:
    """Return offsets of pages, the bytes of their encodings, and where each of these begins and
    how long it is."""
    sizes = np.array([len(encoding) for encoding in encodings.values()], np.intp)
    data = np.frombuffer(b"".join(encodings.values()), np.uint8)
    return _offsets(encodings), data, np.cumsum(sizes) - sizes, sizes


def opening(blocks: Blocks = BLOCKS, *, answers: bool = False) -> list[events.Event]:
    """Return everything before the first page; `answers`: the source wants some."""
    capabilities = ("events", "return-path") if answers else ("events",)
    return [
        events.Header(0),
        events.Configuration(0, "pc-q35-7.2", PAGE, capabilities, bytes(range(16))),
        *([RETURN_PATH] if answers else []),
        EARLY,
        *ram_start(blocks),
    ]


def closing(
    devices: Sequence[events.DeviceSection] = DEVICES,
    *,
    early: Sequence[events.DeviceSection] = (EARLY,),
) -> list[events.Event]:
    """Return everything behind the last page; `early`: what is described as before RAM."""
    told = description([*early, *devices])
    return [*ram_piece(END), *devices, events.EndOfStream(0), told]


def stream_with(*records: events.Event, blocks: Blocks = BLOCKS) -> bytes:
    """Return a stream whose pages are one piece with these records."""
    return to_bytes([*opening(blocks), *ram_part(*records), *closing()])


def every_event() -> list[events.Event]:
    """Return a stream with every event of an ordinary one; what some pages hold is nonsense."""
    return [
        *opening(answers=True),
        *ram_part(
            page_run(0, range(20)),
            page_run(0, [40, 22, 23], 0, continued=True),
            page_run(0, [24], 5, continued=True),
            page_run(1, [3, 1]),
            xbzrle_run(1, {3: b"\x05\x02ab", 1: b"", 2: b"\0\x82\x02" + bytes(258)}),
            xbzrle_run(1, {0: b"\x05\x01a"}, continued=True),
            page_run(1, [2], continued=True),
            xbzrle_run(0, {9: b"\x05\x01a"}),
            compressed_run(0, {11: zlib.compress(bytes(PAGE)), 12: b"any"}, continued=True),
            compressed_run(1, {0: b"x" * 70}),
            compressed_run(1, {2: b""}, continued=True),
        ),
        *ram_part(page_run(0, [1], 0), events.MultifdFlush(0)),
        *closing([device(3, "timer", b"\x01" * 20), device(4, "cpu", b"")]),
    ]


def of_synthetic(size: str, folder: Path) -> bytes:
    """Return the stream of a synthetic guest that wants an answer; `folder`: for a file."""
    path = folder / "stream"
    guest = SyntheticGuest.parse(size)
    try:
        Sender(guest, f"file:{path}").run()
    finally:
        guest.close()
    return before_ram(path.read_bytes(), to_bytes([RETURN_PATH]))


def before_ram(data: bytes, more: bytes) -> bytes:
    """Return the stream with `more` in front of its section `ram`."""
    at = data.index(to_bytes(ram_piece(START)[:1]))
    return data[:at] + more + data[at:]


def ram_images(found: Iterable[events.Event]) -> dict[str, bytes]:
    """Return the RAM that these events build, one page at a time; by the name of the block."""
    images = {block.name: bytearray(block.length) for block in BLOCKS}
    for event in found:
        if not isinstance(event, (events.PageRun, events.EncodedRun)):
            continue
        image = images[event.block.name]
        for row, offset in enumerate(event.offsets.tolist()):
            body, at = _body(event, row), offset
            if isinstance(event, events.XbzrleRun):
                at, body = offset + body[0], body[2:]
            elif isinstance(event, events.CompressedRun):
                body = zlib.decompress(body)
            image[at : at + len(body)] = body
    return {name: bytes(image) for name, image in images.items()}


def _body(run: events.PageRun | events.EncodedRun, row: int) -> bytes:
    """Return a page of a run, or its encoding."""
    if isinstance(run, events.EncodedRun):
        return run.data[run.starts[row] :][: run.sizes[row]].tobytes()
    return bytes([run.fill]) * PAGE if run.data is None else run.data[row].tobytes()


def plainly(found: Iterable[events.Event]) -> list[tuple[Any, ...]]:
    """Return events as values that compare, page by page, however the runs were cut."""
    result: list[tuple[Any, ...]] = []
    for event in found:
        if isinstance(event, events.PageRun):
            for row, offset in enumerate(event.offsets.tolist()):
                body = event.fill if event.data is None else event.data[row].tobytes()
                result.append((event.block, event.block_index, offset, body))
        elif isinstance(event, events.EncodedRun):
            for row, offset in enumerate(event.offsets.tolist()):
                encoding = event.data[event.starts[row] :][: event.sizes[row]].tobytes()
                result.append((event.block, event.block_index, offset, type(event), encoding))
        else:
            result.append((type(event), vars(event)))
    return result


EVENTS: list[events.Event] = [
    *opening(),
    *ram_part(
        page_run(0, [*range(20), 40, 41, 60]),
        page_run(0, range(100, 250), 0, continued=True),
        page_run(0, [21, 22], 0x5A, continued=True),
        page_run(1, [3, 1]),
    ),
    *ram_part(
        page_run(0, [1], 0),
        page_run(0, range(200, 210)),
        changes(0, {203: (9, b"new"), 204: (0, b"er"), 30: (100, b"on zero")}),
    ),
    *closing(),
]
"""A stream of plain and zero pages, some of them sent again, others never."""

SMALL = to_bytes(EVENTS)
"""The stream of these events."""

RAM = ram_images(EVENTS)
"""The RAM that it builds."""

WHOLE = to_bytes([*opening(), *zeros(), *EVENTS[len(opening()) :]])
"""Stream like the one above, with every page that it lacks as a zero page."""

DESCRIPTION = description([EARLY, *DEVICES])
"""End of these streams: the description of their devices."""
