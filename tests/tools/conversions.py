"""Check what `convert` makes of a stream, beside the stream itself."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vmferry.protocol import events
from vmferry.protocol.section_events import BitmapChunk, DiskBlock, HtabChunk, StorageAttributes
from vmferry.tools.compare.streams import compare_blocks
from vmferry.tools.compare.verify import verify
from vmferry.tools.console.failure import CommandError
from vmferry.tools.convert.streams import CONTAINERS, convert
from vmferry.tools.rebuild.guest import RebuiltGuest
from vmferry.tools.sources.containers import open_stream
from vmferry.tools.sources.stream_events import read_events

XML = "<domain type='qemu'><name>guest</name></domain>"
MAPPED = [name for name, kind in CONTAINERS.items() if kind == "sparse"]
"""Containers in which RAM is laid out anew."""
BESIDE_RAM = (
    events.OpaquePiece,
    events.UnsplitDevices,
    *(DiskBlock, BitmapChunk, HtabChunk, StorageAttributes),
)


def check_conversion(source: Path | str, container: str, out: Path) -> str | None:
    """Put the stream into a container, and hold what came out against it.

    None, or the one line by which it was refused; then there is no file.
    """
    out.unlink(missing_ok=True)
    with open_stream(str(source)) as opened:
        try:
            convert(opened, out, container, xml=XML)
        except CommandError as error:
            assert not list(out.parent.glob(f"*{out.name}*")), "something was left behind"
            return str(error)
    with ExitStack() as stack:
        guests, beside = zip(*(_read(path, stack) for path in (str(source), str(out))), strict=True)
        assert list(compare_blocks(*guests)) == []
        assert guests[0].absent == guests[1].absent
        assert beside[0] == beside[1]
    with open_stream(str(out)) as opened:
        verify(opened.stream, {})
    if container not in MAPPED and not _is_mapped(guests[0]):
        assert _content(source) == _content(out)
    return None


def _read(path: str, stack: ExitStack) -> tuple[RebuiltGuest, list[events.Event]]:
    """Return the guest, and all but its RAM, wherever it is in the stream."""
    guest = RebuiltGuest(stack)
    beside: list[events.Event] = []
    with open_stream(path) as opened:
        for event in read_events(opened.stream):
            guest.take(event)
            if isinstance(event, events.DeviceSection):
                beside.append(replace(event, offset=0, payload_offset=0))
            elif isinstance(event, BESIDE_RAM):
                beside.append(replace(event, offset=0))
    return guest, beside


def _is_mapped(guest: RebuiltGuest) -> bool:
    return any(block.mapped is not None for block in guest.blocks.values())


def _content(path: Path | str) -> bytes:
    with open_stream(str(path)) as opened:
        return opened.stream.read()
