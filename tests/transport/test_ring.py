"""The ring, between two real processes."""

from __future__ import annotations

from multiprocessing.connection import Connection

from vmferry.transport.process import start_child, stop_children
from vmferry.transport.ring import Ring, RingReader, RingWriter
from vmferry.transport.shared import wait_readable


def _write(connection: Connection, ring: Ring, count: int) -> None:
    writer = RingWriter(ring)
    for number in range(count):
        while (view := writer.try_acquire()) is None:
            wait_readable([writer.free_fd, connection.fileno()])
        view[:8] = number.to_bytes(8, "little")
        writer.publish(8, 1, number)
    connection.recv()


def test_slots_arrive_whole_and_in_order() -> None:
    """Broken: a slot overwritten while it is read, or a wrong order, would corrupt the stream."""
    ring = Ring.create(3, 4096)
    child = start_child("writer", _write, (ring, 500))
    reader = RingReader(ring)
    for number in range(500):
        while (slot := reader.try_take()) is None:
            assert wait_readable([reader.filled_fd], 20)
        assert (slot.kind, slot.tag) == (1, number)
        assert int.from_bytes(slot.view, "little") == number
        reader.release()
    stop_children([child])
    ring.close()


def test_a_full_ring_blocks_the_writer() -> None:
    """Broken: memory would grow with the guest, or data be overwritten."""
    ring = Ring.create(2, 4096)
    writer = RingWriter(ring)
    for _ in range(2):
        assert writer.try_acquire() is not None
        writer.publish(1, 1, 0)
    assert writer.try_acquire() is None
    ring.close()
