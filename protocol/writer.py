"""Write a stream event by event, as the counterpart of the reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import events
from .pages import records
from .sections import block, dirty_bitmap, htab, storage_attributes
from .wire import mapped_ram, ram, stream
from .wire.kept import whole
from .wire.marks import CAPABILITIES, MAGIC, PAGE_BITS, UUID, RamFlag, SectionType


class StreamWriter:
    """Writer that turns events into the bytes of a stream; it ignores their `offset`."""

    def write(self, event: events.Event) -> bytes:
        """Return the bytes of `event`."""
        return _WRITERS[type(event)](event)


def _header(event: events.Header) -> bytes:
    return _build(stream.FileHeader, magic=MAGIC, version=event.version)


def _configuration(event: events.Configuration) -> bytes:
    capabilities = event.capabilities
    values = {
        PAGE_BITS: None if event.page_size is None else event.page_size.bit_length() - 1,
        CAPABILITIES: None if capabilities is None else [n.encode() for n in capabilities],
        UUID: event.uuid,
    }
    pieces = [_build(stream.ConfigurationHeader, machine=event.machine.encode())]
    for name, body in stream.CONFIGURATION_SUBSECTIONS.items():
        if values[name] is not None:
            pieces.append(_build(stream.SubsectionHeader, name=name, version=1))
            pieces.append(body.build(values[name]))
    return b"".join(pieces)


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
        raise ValueError("the list stands between pages: see mapped_pages.list_pieces")
    return ram.mem_size(event.total) + b"".join(map(block_entry, event.blocks))


def block_entry(block: events.RamBlock) -> bytes:
    """Return the bytes of one entry of the list of RAM blocks."""
    pieces = [_build(ram.BlockEntry, name=block.name.encode(), length=block.length)]
    if block.page_size is not None:
        pieces.append(ram.BlockPageSize.build(block.page_size))
    if block.address is not None:
        pieces.append(ram.BlockAddress.build(block.address))
    if block.mapped is not None:
        pieces.append(mapped_ram.build_header(block.mapped))
    return b"".join(pieces)


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
    block.DiskBlock: block.write_block,
    block.DiskProgress: block.write_progress,
    block.EndOfDisks: block.write_end,
    dirty_bitmap.BitmapChunk: dirty_bitmap.write_chunk,
    htab.HtabHeader: htab.write_header,
    htab.HtabChunk: htab.write_chunk,
    storage_attributes.StorageAttributes: storage_attributes.write_record,
    events.OpaquePiece: lambda event: whole(event.payload),
    events.NoFooters: lambda _: b"",
    events.UnsplitDevices: lambda event: whole(event.data),
    events.Footer: lambda event: stream.section_footer(event.section_id),
    events.DeviceSection: _device,
    events.Command: _command,
    events.EndOfStream: lambda _: stream.EndOfStream.build(None),
    events.Description: _description,
}
