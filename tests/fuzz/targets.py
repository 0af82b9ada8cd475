"""Define the targets of fuzzing: each takes any bytes, and may raise nothing but StreamError.

`python -m tests.fuzz TARGET` runs one under atheris. A failure is kept in tests/protocol/corpus.
"""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from vmferry.protocol import events
from vmferry.protocol.devices import fields
from vmferry.protocol.errors import StreamError
from vmferry.protocol.formats.zstd import FrameWalker
from vmferry.protocol.pages import xbzrle, zlib_pages
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.rescue.damage import Damage, Mended, Unplaced
from vmferry.protocol.writer import StreamWriter
from vmferry.tools.compare.verify import check_devices
from vmferry.tools.rebuild.arrivals import Arrivals
from vmferry.tools.rebuild.guest import rebuild
from vmferry.tools.rescue.salvage_events import Salvager
from vmferry.tools.rescue.survey import Survey
from vmferry.tools.sources.containers import ChooseSnapshotError, unpack
from vmferry.tools.sources.save_image import read_save_image
from vmferry.tools.sources.snapshots import Image, MachineState
from vmferry.tools.sources.stream_events import read_events

PAGE = 4096
BLOCK = events.RamBlock("ram", PAGE)


def fuzz_reader(data: bytes) -> None:
    """Read a stream whole and in pieces, to the same end; write what is accepted as it was."""
    whole = _outcome(data, max(len(data), 1))
    assert _outcome(data, 1 + len(data) // 7) == whole
    assert not isinstance(whole, bytes) or data.startswith(whole)


def _outcome(data: bytes, step: int) -> object:
    """Return the bytes that are written again, or where and why the stream is refused."""
    reader, written = StreamReader(), bytearray()
    writer, mapped = StreamWriter(), False
    try:
        for start in range(0, len(data), step):
            for event in reader.feed(data[start : start + step]):
                mapped |= isinstance(event, events.RamBlocks) and _is_mapped(event)
                written += b"" if mapped else writer.write(event)
        for event in reader.close():
            written += b"" if mapped else writer.write(event)
    except StreamError as error:
        return error.offset, error.message
    return "mapped" if mapped else bytes(written)


def _is_mapped(listed: events.RamBlocks) -> bool:
    return any(block.mapped is not None for block in listed.blocks)


def fuzz_verify(data: bytes) -> None:
    """Do all that `verify` does: rebuild RAM, also of mapped-ram files, and take devices apart."""
    with ExitStack() as stack:
        guest = rebuild(read_events(io.BytesIO(data)), stack)
        check_devices(guest)
        guest.arrivals.missing()


def fuzz_partial(data: bytes) -> None:
    """Read what is left of a damaged stream; check that places rise and pages fit their blocks."""
    survey = Survey()
    salvager = Salvager(io.BytesIO(data), survey)
    arrivals, blocks, place = Arrivals(), set[str](), 0
    for event in salvager.read():
        survey.take(event)
        if isinstance(event, Damage):
            assert place <= event.end
            place = event.end
            assert event.before is None or event.before.block in range(len(blocks))
        if isinstance(event, (Damage, Mended, Unplaced)):
            continue
        arrivals.take(event)
        if isinstance(event, events.RamBlocks):
            blocks |= {block.name for block in event.blocks}
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            assert event.block.name in blocks
            assert len(event.offsets)
            assert int(event.offsets.max()) < event.block.length
    survival = survey.finish(blocks, arrivals)
    assert salvager.error is None or survival.pieces or survival.mended
    json.dumps(survival.as_json())
    assert all(line.isprintable() for line in [*survival.describe(), survival.summary()])


def fuzz_container(data: bytes) -> None:
    """Take off whatever a stream is wrapped in, and build RAM from it."""
    # Readers of the run before are in cycles, with windows of up to 128 MiB for what was in zstd.
    gc.collect(1)
    try:
        opened = unpack(io.BytesIO(data), None)
    except ChooseSnapshotError as several:
        if not several.snapshots:
            raise
        opened = unpack(io.BytesIO(data), several.snapshots[0].name)
    with ExitStack() as stack:
        rebuild(read_events(opened.stream), stack)


def fuzz_mapped_pages(data: bytes) -> None:
    """Read a mapped-ram file, and check that each page arrives once, in order, with its content."""
    listed: events.RamBlocks | None = None
    last = (-1, -1)
    for event in read_events(io.BytesIO(data)):
        if isinstance(event, events.RamBlocks):
            listed = event
        if not isinstance(event, events.MappedRun):
            continue
        assert listed is not None
        assert event.data is not None
        assert listed.blocks[event.block_index] == event.block
        for index, offset in enumerate(event.offsets.tolist()):
            assert (event.block_index, offset) > last
            last = (event.block_index, offset)
            start, size = event.record_offset(index), listed.page_size
            assert event.data[index].tobytes() == data[start : start + size]


def _run(kind: type[events.XbzrleRun] | type[events.CompressedRun], data: bytes) -> events.Event:
    raw, nothing = np.frombuffer(data, np.uint8), np.zeros(1, np.intp)
    sizes = np.array([len(data)], np.intp)
    return kind(0, BLOCK, 0, np.zeros(1, np.uint64), raw, nothing, sizes)


def fuzz_xbzrle(data: bytes) -> None:
    """Apply one encoding to a page."""
    run = _run(events.XbzrleRun, data)
    assert isinstance(run, events.XbzrleRun)
    page = np.zeros((1, PAGE), np.uint8)
    xbzrle.apply(page, np.zeros(1, np.intp), run.data, xbzrle.read_run(run, PAGE))


def fuzz_compress(data: bytes) -> None:
    """Decompress one page of zlib data."""
    run = _run(events.CompressedRun, data)
    assert isinstance(run, events.CompressedRun)
    assert zlib_pages.decompress(run, PAGE).shape == (1, PAGE)


def fuzz_libvirt(data: bytes) -> None:
    """Read the header of a save image."""
    read_save_image(io.BytesIO(data))


def fuzz_zstd(data: bytes) -> None:
    """Walk frames in two pieces."""
    walker = FrameWalker(1 << 20)
    half = len(data) // 2
    _, done = walker.parse(memoryview(data[:half]))
    walker.parse(memoryview(data[done:]))
    walker.close()


def fuzz_qcow2(data: bytes) -> None:
    """Read the snapshots of an image, and the first bytes of each state."""
    image = Image(io.BytesIO(data))
    for snapshot in image.snapshots[:4]:
        if snapshot.state_size:
            MachineState(image, snapshot).read(1 << 16)


def fuzz_description(data: bytes) -> None:
    """Read a payload, whose length is in the first two bytes, by the structure that follows it."""
    size = int.from_bytes(data[:2], "big")
    payload, text = data[2 : 2 + size], data[2 + size :]
    try:
        structure = json.loads(text)
    except (ValueError, RecursionError):
        return
    fields.decode(structure, payload, 0, "device")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "reader": fuzz_reader,
    "verify": fuzz_verify,
    "partial": fuzz_partial,
    "mapped-pages": fuzz_mapped_pages,
    "container": fuzz_container,
    "xbzrle": fuzz_xbzrle,
    "compress": fuzz_compress,
    "libvirt": fuzz_libvirt,
    "zstd": fuzz_zstd,
    "qcow2": fuzz_qcow2,
    "description": fuzz_description,
}


def harmless(target: str, data: bytes) -> None:
    """Run it; a StreamError is an answer, in one line of no more than a few names."""
    try:
        TARGETS[target](data)
    except StreamError as error:
        line = str(error)
        assert line.isprintable(), line
        assert len(line) < 1200, line
