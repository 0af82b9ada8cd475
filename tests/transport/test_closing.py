"""Test that what processes share is given back at once, not when Python collects garbage."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from vmferry.transport.counters import Counters
from vmferry.transport.ring import Ring, RingWriter


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_counters_stay_readable() -> None:
    """Broken: a service would hold descriptors and memory of every migration that is over."""
    before = _descriptors()
    counters = Counters.create(("pages", "bytes"))
    counters.add("bytes", 7)
    counters.close()
    assert _descriptors() == before
    assert (counters["pages"], counters["bytes"]) == (0, 7)
    counters.close()


def test_ring_is_unmapped() -> None:
    """Broken: the megabytes of a ring would stay mapped where its writer is still known."""
    before = _descriptors()
    ring = Ring.create(4, 4096)
    writer = RingWriter(ring)
    slot = writer.try_acquire()
    assert slot is not None
    del slot
    writer.publish(1, 0, 0)
    writer.close()
    ring.close()
    assert _descriptors() == before
