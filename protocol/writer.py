"""Write a stream event by event, as the counterpart of the reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import events, section_events
from .pages import records
from .pages.block_entry import block_entry
from .sections import block, dirty_bitmap, htab, storage_attributes
from .wire import ram, stream
from .wire.configuration import build_configuration
from .wire.kept import whole
from .wire.marks import MAGIC, RamFlag, SectionType


class StreamWriter:
    """Writer that turns events into the bytes of a stream; it ignores their `offset`."""

    def write(self, event: events.Event) -> bytes:
        """Return the bytes of `event`."""
        return _WRITERS[type(event)](event)


def _header(event: events.Header) -> bytes:
    return _build(stream.FileHeader, magic=MAGIC, version=event.version)


def _configuration(event: events.Configuration) -> bytes:
    return build_configuration(event.machine, event.page_size, event.capabilities, event.uuid)


def _iterative_section(event: events.IterativeSection) -> bytes:
    if event.kind == SectionType.START:
        return _section_header(event.kind, event)
    return _build(stream.SectionContinuation, type=event.kind, section_id=event.section_id)


def _section_header(
    kind: SectionType, event: events.IterativeSection | events.DeviceSection
) -> bytes:
    return _build(
        stream.SectionHeader,
        type=kind,
        section_id=event.section_id,
        name=event.name.encode(),
        instance_id=event.instance_id,
        version=event.version,
    )


def _ram_blocks(event: events.RamBlocks) -> bytes:
    if any(block.mapped is not None and block.mapped.present for block in event.blocks):
        raise ValueError("the list is between pages: see mapped_pages.list_pieces")
    return ram.mem_size(event.total) + b"".join(map(block_entry, event.blocks))


def _page_run(event: events.PageRun) -> bytes:
    name = None if event.continued else event.block.name.encode()
    count = len(event.offsets)
    if event.data is None:
        out = bytearray(records.zero_size(count, name))
        records.pack_zero(memoryview(out), name, event.offsets, event.fill)
    else:
        out = bytearray(records.plain_size(count, event.data.shape[1], name))
        records.pack_plain(memoryview(out), name, event.offsets, event.data)
    return bytes(out)


def _xbzrle_run(event: events.XbzrleRun) -> bytes:
    def head(size: int) -> bytes:
        return _build(ram.XbzrleHead, encoding=ram.XBZRLE_ENCODING, length=size)

    return _encoded_run(event, RamFlag.XBZRLE, head)


def _compressed_run(event: events.CompressedRun) -> bytes:
    return _encoded_run(event, RamFlag.COMPRESS_PAGE, ram.CompressedHead.build)


def _encoded_run(event: events.EncodedRun, flag: RamFlag, head: Callable[[int], bytes]) -> bytes:
    pieces: list[bytes] = []
    for index, address in enumerate(event.offsets.tolist()):
        start, size = int(event.starts[index]), int(event.sizes[index])
        flags, name = flag, b""
        if index or event.continued:
            flags |= RamFlag.CONTINUE
        else:
            name = stream.Str8.build(event.block.name.encode())
        encoding = event.data[start : start + size].tobytes()
        pieces += [ram.RecordHeader.build(address | flags), name, head(size), encoding]
    return b"".join(pieces)


def _device(event: events.DeviceSection) -> bytes:
    footer = stream.section_footer(event.section_id) if event.footer else b""
    return _section_header(SectionType.FULL, event) + whole(event.payload) + footer


def _command(event: events.Command) -> bytes:
    return _build(stream.Command, command=event.command, data=event.data)


def _description(event: events.Description) -> bytes:
    return _build(stream.DescriptionHeader, length=len(event.text)) + event.text


def _build(declaration: Any, **values: object) -> bytes:
    data: bytes = declaration.build(values)
    return data


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    events.Header: _header,
    events.Configuration: _configuration,
    events.IterativeSection: _iterative_section,
    events.RamSection: _iterative_section,
    events.RamBlocks: _ram_blocks,
    events.PageRun: _page_run,
    events.MappedRun: _page_run,
    events.MultifdRun: _page_run,
    events.XbzrleRun: _xbzrle_run,
    events.CompressedRun: _compressed_run,
    events.MultifdFlush: lambda _: ram.multifd_flush(),
    events.EndOfRam: lambda _: ram.end_of_ram(),
    section_events.DiskBlock: block.write_block,
    section_events.DiskProgress: block.write_progress,
    section_events.EndOfDisks: block.write_end,
    section_events.BitmapChunk: dirty_bitmap.write_chunk,
    section_events.HtabHeader: htab.write_header,
    section_events.HtabChunk: htab.write_chunk,
    section_events.StorageAttributes: storage_attributes.write_record,
    events.OpaquePiece: lambda event: whole(event.payload),
    events.NoFooters: lambda _: b"",
    events.UnsplitDevices: lambda event: whole(event.data),
    events.Footer: lambda event: stream.section_footer(event.section_id),
    events.DeviceSection: _device,
    events.Command: _command,
    events.EndOfStream: lambda _: stream.EndOfStream.build(None),
    events.Description: _description,
}
