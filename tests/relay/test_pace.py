"""Test that what waits for a slow link is bounded by time, and that nothing is lost (law 8)."""

from __future__ import annotations

import fcntl
import random
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.relay.blocks import BLOCK_SIZE, Buffers
from vmferry.relay.outgoing import Outgoing
from vmferry.relay.pace import LEAST_BLOCK, LEAST_UNSENT, MOST_UNSENT, Pace
from vmferry.transport.adaptive import Link
from vmferry.transport.sockets import keep_unsent

from tests.relay.pair import Pair
from tests.relay.test_pair import exchange, run

MIB = 1 << 20
_SIOCOUTQNSD = 0x894B
"""Request for the bytes that a TCP connection has not sent yet (linux/sockios.h)."""


def paced(rate: float, *, ratio: float = 1.0, limit: float = 0, connections: int = 1) -> Pace:
    """Return the pace of a link of so many bytes a second, which compresses by `ratio`."""
    pace = Pace()
    link = Link(100 * MIB, 1 / rate, 1 / limit if limit else 0.0)
    pace.sent(int(MIB * ratio), MIB, link, connections)
    return pace


@given(st.floats(16 * MIB, 1 << 40), st.floats(1, 8), st.integers(1, 16))
def test_what_waits_leaves_soon(rate: float, ratio: float, connections: int) -> None:
    """Broken: the guest would stand still for as long as all that takes, at the switchover."""
    pace = paced(rate, ratio=ratio, connections=connections)
    assert pace.block / ratio / rate < 0.01
    assert (pace.unsent == LEAST_UNSENT) or connections * pace.unsent / rate < 0.02
    assert LEAST_BLOCK <= pace.block <= BLOCK_SIZE
    assert LEAST_UNSENT <= pace.unsent <= MOST_UNSENT


def test_a_fast_link_gets_large_blocks() -> None:
    """Broken: each block would cost more than it takes to send it."""
    for pace in (paced(1 << 30), Pace()):
        assert (pace.block, pace.unsent) == (BLOCK_SIZE, MOST_UNSENT)


def test_a_limit_of_bandwidth_counts_as_the_rate() -> None:
    """Broken: a fast link with --max-bandwidth would hold as much as a fast one."""
    assert paced(1 << 30, limit=16 * MIB).block == paced(16 * MIB).block


def test_a_socket_takes_little_that_it_cannot_send() -> None:
    """Broken: the system would hold megabytes of a slow link, which prolongs the downtime."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
        server.accept()[0],
    ):
        sock.setblocking(False)
        keep_unsent(sock, LEAST_UNSENT)
        with suppress(BlockingIOError):
            for _ in range(64):
                sock.send(bytes(MIB))
        unsent = fcntl.ioctl(sock, _SIOCOUTQNSD, bytes(4))
        assert int.from_bytes(unsent, sys.byteorder) <= 2 * LEAST_UNSENT


def test_a_block_that_is_larger_than_its_new_limit_is_full() -> None:
    """Broken: nothing would be read, which looks like the end of what the source sends."""
    pace = Pace()
    outgoing = Outgoing(0, Buffers(), pace)
    outgoing.room()[: 2 * LEAST_BLOCK] = bytes(2 * LEAST_BLOCK)
    outgoing.filled(2 * LEAST_BLOCK, 0.0)
    assert not outgoing.full
    pace.block = LEAST_BLOCK
    assert outgoing.full
    assert not outgoing.room()
    raw = outgoing.pull(pace.block)
    assert raw is not None
    assert raw.length == 2 * LEAST_BLOCK
    assert len(outgoing.room()) == LEAST_BLOCK


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_limits_that_change_all_the_time_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str
) -> None:
    """Broken: law 8; a byte would be lost or torn from the stream whenever the link changes."""
    rng = random.Random(1)

    def sent(self: Pace, *_: object) -> None:
        self.block = rng.choice([LEAST_BLOCK, 3 * LEAST_BLOCK, BLOCK_SIZE])
        self.unsent = rng.choice([LEAST_UNSENT, MOST_UNSENT])

    monkeypatch.setattr(Pace, "sent", sent)

    async def test(pair: Pair) -> None:
        await exchange(pair, rng.randbytes(24 * MIB), rng.randbytes(4 * MIB))

    run(test, lambda: Pair(tmp_path, compress=compress))
