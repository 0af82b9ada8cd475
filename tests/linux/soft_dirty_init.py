"""The first process of a virtual machine whose kernel has soft-dirty bits: migrate by them.

Each result is a line of JSON on the console, behind the word RESULT. The last one is "end".
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from vmferry.guest.errors import MigrationError
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.tracking import soft_dirty
from vmferry.guest.tracking.soft_dirty import SoftDirtyBits, read_soft_dirty
from vmferry.guest.tracking.table import TableTracker, map_table
from vmferry.sender.coordinator import Sender
from vmferry.sender.parameters import SendParameters
from vmferry.transport.settings import TrackerKind

from tests.guest.tracking.soft_dirty_process import Still
from tests.sender.incoming import Incoming

ROUNDS = 5
"""Rounds of the running guest in each migration."""
COUNT = 1000
POWER_OFF = 0x4321FEDC


def result(name: str, **values: Any) -> None:
    # An empty line first: the kernel may have written a part of one.
    print("\nRESULT", json.dumps({"name": name, **values}), flush=True)


def mount() -> None:
    """Mount what a Linux system has."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, place in ((b"proc", b"/proc"), (b"devtmpfs", b"/dev"), (b"tmpfs", b"/tmp")):
        if libc.mount(kind, place, kind, 0, None):
            raise OSError(ctypes.get_errno(), place)


def marks_are_exact() -> None:
    """Check that the bits of this process name the pages that were written, and no others."""
    guest = Still("still", {"ram": COUNT * 4096, "rom": 3 * 4096})
    ram = guest.memory("ram").reshape(COUNT, 4096)
    ram[: COUNT // 2] = 1
    guest.resume()
    marks = read_soft_dirty(guest.process_memory(), guest)
    trackers = [TableTracker(part) for part in map_table(marks.table, (COUNT, 3))]
    marks.collect(guest)
    first = int(trackers[0].take_dirty(0, COUNT).sum() + trackers[1].take_dirty(0, 3).sum())
    marks.collect(guest)
    none = marks.dirty_bytes()
    # A page that exists, one that does not yet, one that is only read, and one the kernel writes.
    ram[5, 7] = 2
    ram[COUNT - 1, 0] = 2
    read = int(ram[6].sum() + ram[COUNT - 2].sum())
    with open("/dev/zero", "rb", buffering=0) as zeros:
        zeros.readinto(memoryview(ram[9]))
    counted = marks.dirty_bytes()
    marks.collect(guest)
    found = np.flatnonzero(trackers[0].take_dirty(0, COUNT)).tolist()
    marks.close()
    guest.close()
    result("exact", first=first, none=none, read=read, counted=counted, found=found)


def migrate(workers: int, tracker: TrackerKind, rate: str = "4M") -> dict[str, Any]:
    """Move a guest that writes all the time, and compare both memories."""
    side = Incoming("unix:/tmp/socket", workers)
    source = SyntheticGuest.parse(f"8M,dirty-rate={rate}")
    parameters = SendParameters(tracker=tracker, workers=workers, downtime_limit=0)
    sender = Sender(source, side.address, parameters)

    def on_round(number: int) -> None:
        if number == ROUNDS:
            sender.limits.set_downtime_limit(60)

    sender.on_round = on_round
    begin = time.monotonic()
    try:
        figures = sender.run()
        side.join()
        differ = int((source.page_digests() != side.guest.page_digests()).any(axis=1).sum())
        return {
            "differ": differ,
            "bad": len(side.guest.verify()),
            "rounds": figures.dirty_sync_count,
            "tracker": figures.tracker,
            "sent": figures.transferred,
            "seconds": round(time.monotonic() - begin, 1),
        }
    except MigrationError as error:
        return {"error": str(error), "other": str(side.error)}
    finally:
        source.close()
        side.close()
        if os.path.exists("/tmp/socket"):
            os.unlink("/tmp/socket")


@contextmanager
def not_held(_: SyntheticGuest) -> Iterator[None]:
    yield


class Slow(SoftDirtyBits):
    """Bits between whose reading and removing some time passes."""

    def clear(self) -> None:
        time.sleep(0.2)
        super().clear()


def run() -> None:
    mount()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    result("kernel", release=os.uname().release, has=soft_dirty.kernel_has_soft_dirty())
    marks_are_exact()
    result("auto", **migrate(0, TrackerKind.AUTO))
    for workers in (1, 4):
        result(f"workers {workers}", **migrate(workers, TrackerKind.SOFT_DIRTY))
    soft_dirty.SoftDirtyBits = Slow  # type: ignore[misc]
    result("slow", **migrate(2, TrackerKind.SOFT_DIRTY))
    SyntheticGuest.held = not_held  # type: ignore[method-assign,assignment]
    # Now removing marks may fail to remove those of a guest that writes meanwhile.
    soft_dirty.SoftDirtyMarks.check = lambda *_: None  # type: ignore[method-assign]
    # A page that was lost is not written again so soon.
    result("broken", **migrate(0, TrackerKind.SOFT_DIRTY, "1M"))


if __name__ == "__main__":
    try:
        run()
    except BaseException:
        traceback.print_exc()
    result("end")
    sys.stdout.flush()
    ctypes.CDLL(None).reboot(POWER_OFF)
