"""Multifd migrations that arrive: whole, whichever connection comes first or is slow."""

from __future__ import annotations

import socket
from itertools import permutations

import pytest
from vmferry.protocol.wire.multifd import Compression

from tests.protocol.channels import migration
from tests.receiver.multifd.arriving import Slowly, Start

KINDS = [Compression.NONE, Compression.ZLIB, Compression.ZSTD]


def by_file(ram: dict[str, bytes]) -> list[bytes]:
    """Return the contents of blocks, whatever their files are called."""
    return sorted(ram.values())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at_flush", [True, False], ids=["flush", "ends of pieces"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory(kind: Compression, at_flush: bool, workers: int, receive: Start) -> None:
    """Broken: pages would be lost, old, or at a wrong place."""
    made = migration(kind, at_flush=at_flush, count=4)
    arriving = receive(4, workers)
    arriving.source.main(made.main)
    for data in made.channels:
        arriving.source.connect(data)
    assert by_file(arriving.arrives()) == by_file(made.ram)
    assert arriving.refused == []
    assert arriving.figures is not None
    assert arriving.figures.multifd_bytes == sum(map(len, made.channels))
    assert arriving.figures.transferred == arriving.figures.multifd_bytes + len(made.main)


@pytest.mark.parametrize("order", [*permutations(["main", 0, 1])], ids=str)
def test_any_order(order: tuple[str | int, ...], receive: Start) -> None:
    """Broken: a migration would fail by chance, as connections overtake each other."""
    made = migration()
    arriving = receive()
    for which in order:
        if isinstance(which, int):
            arriving.source.connect(made.channels[which])
        else:
            arriving.source.main(made.main)
    assert by_file(arriving.arrives()) == by_file(made.ram)


@pytest.mark.parametrize("at_flush", [True, False], ids=["flush", "ends of pieces"])
@pytest.mark.parametrize("slow", ["main", 0, 1])
def test_slow_connection(slow: str | int, at_flush: bool, receive: Start) -> None:
    """Broken: a page of one round would overwrite that of a later round, over another channel."""
    made = migration(at_flush=at_flush)
    way = Slowly(150 if slow == "main" else 20_000, 0.005)
    arriving = receive()
    arriving.source.main(made.main, *([way] if slow == "main" else []))
    for number, data in enumerate(made.channels):
        arriving.source.connect(data, *([way] if slow == number else []))
    assert by_file(arriving.arrives()) == by_file(made.ram)


def test_channels_that_end_early(receive: Start) -> None:
    """Broken: a source that closes its channels once it has sent everything could not be taken."""
    made = migration()
    arriving = receive()
    arriving.source.main(made.main, Slowly(500, 0.01))
    for data in made.channels:
        arriving.source.connect(data, ends=True)
    assert by_file(arriving.arrives()) == by_file(made.ram)


def test_half_a_greeting(receive: Start) -> None:
    """Broken: a channel whose greeting comes in two packets would be refused."""
    made = migration()
    arriving = receive()

    def halting(connection: socket.socket, data: bytes) -> None:
        Slowly(3, 0.01)(connection, data[:66])
        connection.sendall(data[66:])

    for data in made.channels:
        arriving.source.connect(data, halting)
    arriving.source.main(made.main, Slowly(1, 0.0))
    assert by_file(arriving.arrives()) == by_file(made.ram)
