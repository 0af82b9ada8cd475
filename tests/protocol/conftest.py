"""A small but complete stream, made with the writer, and ways to look at what was read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from vmferry.protocol import events
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire.marks import SectionType
from vmferry.protocol.writer import StreamWriter

PAGE = 4096
BLOCKS = (events.RamBlock("pc.ram", 64 * PAGE), events.RamBlock("pc.rom", 4 * PAGE))


def ram_piece(kind: SectionType, *records: events.Event) -> list[events.Event]:
    """One piece of the `ram` section around these records."""
    section = events.RamSection(0, kind, 2)
    return [section, *records, events.EndOfRam(0), events.Footer(0, 2)]


def page_run(
    block: int, numbers: Iterable[int], fill: int | None = None, continued: bool = False
) -> events.PageRun:
    """Pages `numbers` of a block: of the byte `fill`, or (None) each with contents of its own."""
    offsets = np.array(list(numbers), np.uint64) * np.uint64(PAGE)
    data = None
    if fill is None:
        data = np.random.default_rng(7).integers(0, 256, (len(offsets), PAGE), np.uint8)
    return events.PageRun(0, BLOCKS[block], block, offsets, data, fill or 0, continued)


def xbzrle_run(block: int, changes: dict[int, bytes], continued: bool = False) -> events.XbzrleRun:
    """XBZRLE records: of each page of a block, its encoding."""
    offsets = np.array(list(changes), np.uint64) * np.uint64(PAGE)
    sizes = np.array([len(encoding) for encoding in changes.values()], np.intp)
    data = np.frombuffer(b"".join(changes.values()), np.uint8)
    starts = np.cumsum(sizes) - sizes
    return events.XbzrleRun(0, BLOCKS[block], block, offsets, data, starts, sizes, continued)


def compressed_run(
    block: int, contents: dict[int, bytes], continued: bool = False
) -> events.CompressedRun:
    """COMPRESS_PAGE records: of each page of a block, its zlib data."""
    return events.CompressedRun(**vars(xbzrle_run(block, contents, continued)))


def device(section_id: int, name: str, payload: bytes) -> events.DeviceSection:
    """A device section."""
    return events.DeviceSection(0, section_id, name, 0, 1, payload)


def description(sections: Iterable[events.DeviceSection], **more: Any) -> events.Description:
    """A description of these devices, each of one field."""
    listed = [
        {
            "name": section.name,
            "instance_id": section.instance_id,
            "fields": [{"name": "data", "type": "buffer", "size": len(section.payload)}],
        }
        for section in sections
    ]
    value = {"page_size": PAGE, "devices": listed, **more}
    return events.Description(0, json.dumps(value).encode(), value)


def opening() -> list[events.Event]:
    """Everything up to the first page."""
    capabilities = ("events", "return-path")
    return [
        events.Header(0),
        events.Configuration(0, "pc-q35-7.2", PAGE, capabilities, bytes(range(16))),
        events.Command(0, 1),
        device(1, "early", b"virtio-mem"),
        *ram_piece(
            SectionType.START,
            events.RamBlocks(0, sum(block.length for block in BLOCKS), BLOCKS),
        ),
    ]


def closing(*devices: events.DeviceSection) -> list[events.Event]:
    """Everything behind the last page."""
    return [
        *ram_piece(SectionType.END),
        *devices,
        events.EndOfStream(0),
        description(devices),
    ]


def small_stream() -> list[events.Event]:
    """A whole stream with every kind of event."""
    return [
        *opening(),
        *ram_piece(
            SectionType.PART,
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
        *ram_piece(SectionType.PART, page_run(0, [1], 0), events.MultifdFlush(0)),
        *closing(device(3, "timer", b"\x01" * 20), device(4, "cpu", b"")),
    ]


def to_bytes(found: Iterable[events.Event]) -> bytes:
    """The stream that these events make."""
    return b"".join(map(StreamWriter().write, found))


def read(stream: bytes) -> list[events.Event]:
    """The events of a whole stream."""
    reader = StreamReader()
    return reader.feed(stream) + reader.close()


def plainly(found: Iterable[events.Event]) -> list[tuple[Any, ...]]:
    """Events as values that compare, page by page, however the runs were cut."""
    result: list[tuple[Any, ...]] = []
    for event in found:
        if isinstance(event, events.PageRun):
            for row, offset in enumerate(event.offsets.tolist()):
                body = event.fill if event.data is None else bytes(event.data[row])
                result.append((event.block, event.block_index, offset, body))
        elif isinstance(event, events.EncodedRun):
            for row, offset in enumerate(event.offsets.tolist()):
                encoding = bytes(event.data[event.starts[row] :][: event.sizes[row]])
                result.append((event.block, event.block_index, offset, type(event), encoding))
        else:
            result.append((type(event), vars(event)))
    return result


class Make:
    """The functions above, for tests."""

    ram_piece = staticmethod(ram_piece)
    page_run = staticmethod(page_run)
    xbzrle_run = staticmethod(xbzrle_run)
    compressed_run = staticmethod(compressed_run)
    device = staticmethod(device)
    description = staticmethod(description)
    opening = staticmethod(opening)
    closing = staticmethod(closing)
    small_stream = staticmethod(small_stream)
    to_bytes = staticmethod(to_bytes)
    read = staticmethod(read)
    plainly: Callable[[Iterable[events.Event]], list[tuple[Any, ...]]] = staticmethod(plainly)
    page_size = PAGE
    blocks = BLOCKS


@pytest.fixture(scope="session")
def make() -> type[Make]:
    """Events, streams, and comparable forms of them."""
    return Make
