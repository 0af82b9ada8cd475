"""Check that a stream is of the kind that a test is about; each check fails where it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from vmferry.protocol import events
from vmferry.protocol.section_events import BitmapBits, BitmapChunk, BitmapStart, DiskBlock
from vmferry.protocol.wire.marks import CommandType

Shows = Callable[[list[events.Event]], None]
LARGE = 4608 << 20
BLOB = np.random.default_rng(1).bytes(4096)
"""A page that such a guest has at 4 GiB."""


def pages(found: list[events.Event]) -> Counter[type]:
    """Return how many pages arrived in events of each kind, without zero pages."""
    count: Counter[type] = Counter()
    for event in found:
        zero = isinstance(event, events.PageRun) and event.data is None
        if isinstance(event, (events.PageRun, events.EncodedRun)) and not zero:
            count[type(event)] += len(event.offsets)
    return count


def _pages_that_come_again(found: list[events.Event]) -> int:
    runs = [event for event in found if isinstance(event, (events.PageRun, events.EncodedRun))]
    places = Counter((run.block_index, offset) for run in runs for offset in run.offsets.tolist())
    return sum(count > 1 for count in places.values())


def once(found: list[events.Event]) -> None:
    assert pages(found)[events.PageRun] > 10
    assert _pages_that_come_again(found) == 0


def again(found: list[events.Event]) -> None:
    """Check that pages arrive again, some of them as zero."""
    assert _pages_that_come_again(found) > 500
    written: set[tuple[int, int]] = set()
    cleared = 0
    for run in (event for event in found if isinstance(event, events.PageRun)):
        places = {(run.block_index, offset) for offset in run.offsets.tolist()}
        if run.data is None:
            cleared += len(places & written)
        else:
            written |= places
    assert cleared > 0


def xbzrle(found: list[events.Event]) -> None:
    assert pages(found)[events.XbzrleRun] > 500


def compressed(found: list[events.Event]) -> None:
    assert pages(found)[events.CompressedRun] > 500


def around_the_hole(below: int) -> Shows:
    """Check that the guest's memory at 4 GiB is at `below` in its block."""

    def shows(found: list[events.Event]) -> None:
        runs = [event for event in found if isinstance(event, events.PageRun)]
        (run,) = [r for r in runs if r.data is not None and r.data[0].tobytes() == BLOB]
        assert (run.block.length, run.offsets[0]) == (LARGE, below)

    return shows


def shared(found: list[events.Event]) -> None:
    (listed,) = [event for event in found if isinstance(event, events.RamBlocks)]
    addresses = {block.name: block.address for block in listed.blocks}
    assert (addresses["pc.ram"], addresses["pc.bios"]) == (0, 0xFFFC0000)
    assert "pc.ram" not in {e.block.name for e in found if isinstance(e, events.PageRun)}


def mapped(found: list[events.Event]) -> None:
    (listed,) = [event for event in found if isinstance(event, events.RamBlocks)]
    assert all(block.mapped is not None and block.mapped.present for block in listed.blocks)
    assert not pages(found)


def disks(found: list[events.Event]) -> None:
    blocks = [event for event in found if isinstance(event, DiskBlock) and event.device == "disk0"]
    assert len({block.sector for block in blocks}) == 7
    assert not any(block.data is None for block in blocks)


def zero_blocks(found: list[events.Event]) -> None:
    blocks = [event for event in found if isinstance(event, DiskBlock) and event.device == "disk0"]
    assert len([block for block in blocks if block.data is None]) == 5


def bitmaps(found: list[events.Event]) -> None:
    chunks = [event for event in found if isinstance(event, BitmapChunk)]
    begun = {chunk.bitmap: chunk.body for chunk in chunks if isinstance(chunk.body, BitmapStart)}
    assert begun == {"backup": BitmapStart(65536, 1), "fine": BitmapStart(512, 1)}
    bits = Counter(dict.fromkeys(begun, 0))
    for chunk in chunks:
        if isinstance(chunk.body, BitmapBits):
            bits[chunk.bitmap] += int.from_bytes(chunk.body.bits or b"", "little").bit_count()
    assert bits == {"backup": 2, "fine": 130}


def postcopy(found: list[events.Event]) -> None:
    commands = {event.command for event in found if isinstance(event, events.Command)}
    assert CommandType.POSTCOPY_ADVISE in commands
    assert CommandType.POSTCOPY_RUN not in commands
