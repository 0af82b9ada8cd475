"""Bytes that go from a socket to a file by a pipe."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmferry.transport.splice import Splice

SIZE = 300_000
DATA = bytes(range(256)) * (SIZE // 256 + 1)


@pytest.fixture
def splice() -> Iterator[Splice]:
    made = Splice()
    yield made
    made.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 70_000), min_size=1, max_size=4),
    place=st.integers(0, 9000),
    mapped=st.integers(0, 4),
)
def test_every_byte_arrives_once(
    splice: Splice, counts: list[int], place: int, mapped: int
) -> None:
    """Broken: bytes would be lost, doubled or displaced, also where a file takes no writes."""
    ours, theirs = socket.socketpair()
    file = os.memfd_create("file")
    memory = bytearray(SIZE)
    done = into_file = into_memory = 0
    with ours, theirs:
        for turn, count in enumerate(counts):
            theirs.sendall(DATA[done : done + count])
            left = count
            while left:
                taken = splice.take(ours.fileno(), left)
                if turn < mapped:
                    splice.put(file, place + into_file)
                    into_file += taken
                else:
                    view = memoryview(memory)[into_memory:]
                    assert splice.read_into([view[:10], view[10:]]) == taken
                    into_memory += taken
                left -= taken
            done += count
        theirs.shutdown(socket.SHUT_WR)
        assert splice.take(ours.fileno(), 1) == 0
    assert os.pread(file, SIZE, place) == DATA[:into_file]
    assert memory[:into_memory] == DATA[into_file:done]
    assert done == into_file + into_memory
    os.close(file)


def test_nothing_beyond_what_is_asked_for(splice: Splice) -> None:
    """Broken: the head of the next packet would be written into the guest's memory."""
    ours, theirs = socket.socketpair()
    file = os.memfd_create("file")
    with ours, theirs:
        theirs.sendall(DATA[:10_000])
        assert splice.take(ours.fileno(), 4096) == 4096
        splice.put(file, 0)
        assert ours.recv(20_000) == DATA[4096:10_000]
    assert os.fstat(file).st_size == 4096
    os.close(file)
