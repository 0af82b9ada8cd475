"""Test one direction of a channel without I/O: every byte leaves in order, once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol.formats.link import LinkError
from vmferry.relay.blocks import BLOCK_SIZE, Arrived, Block, Buffers
from vmferry.relay.incoming import Incoming
from vmferry.relay.outgoing import Outgoing
from vmferry.relay.pace import Pace
from vmferry.relay.parameters import WINDOW


def arrived(data: bytes, position: int, length: int) -> Arrived:
    return Arrived(position, memoryview(data[position : position + length]))


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    seed=st.integers(0, 1 << 32),
    twice=st.floats(0, 1),
)
def test_blocks_leave_in_order_and_once(sizes: list[int], seed: int, twice: float) -> None:
    """Broken: after a cut, or with several connections, the stream would be another one."""
    rng = random.Random(seed)
    data = rng.randbytes(sum(sizes))
    blocks, position = [], 0
    for size in sizes:
        blocks.append((position, size))
        position += size
    sent = blocks + [block for block in blocks if rng.random() < twice]
    rng.shuffle(sent)
    incoming, out = Incoming(), b""
    incoming.put_end(len(data))
    seen: set[int] = set()
    for position, size in sent:
        assert incoming.put(arrived(data, position, size)) == (position not in seen)
        seen.add(position)
        while (block := incoming.next()) is not None:
            out += block.content
        assert incoming.at_end == (len(out) == len(data))
    assert out == data


def test_more_than_the_window_is_refused() -> None:
    """Broken: the other end of the link could fill the memory of this one."""
    incoming = Incoming()
    piece = memoryview(bytes(BLOCK_SIZE))
    most = WINDOW // BLOCK_SIZE + 1
    for place in range(1, most + 1):
        incoming.put(Arrived(place * BLOCK_SIZE, piece))
    with pytest.raises(LinkError, match="more than was acknowledged"):
        incoming.put(Arrived((most + 1) * BLOCK_SIZE, piece))


def test_nothing_follows_the_end() -> None:
    """Broken: an end could be acknowledged before all bytes are there."""
    incoming = Incoming()
    incoming.put_end(10)
    with pytest.raises(LinkError):
        incoming.put(Arrived(8, memoryview(b"abc")))
    with pytest.raises(LinkError):
        incoming.put_end(11)


def fill(outgoing: Outgoing, data: bytes) -> None:
    outgoing.room()[: len(data)] = data
    outgoing.filled(len(data), 0.0)


def block_of(outgoing: Outgoing, data: bytes) -> Block:
    """Put `data` into a block that is kept."""
    fill(outgoing, data)
    raw = outgoing.pull()
    assert raw is not None
    assert bytes(raw.content) == data
    block = Block(0, raw.position, raw.length, [raw.content])
    outgoing.keep(block)
    return block


def test_what_a_broken_connection_had_is_sent_again() -> None:
    """Broken: a cut of the link would lose what was under way."""
    outgoing = Outgoing(0, Buffers(), Pace())
    first, second, third = (block_of(outgoing, data) for data in (b"one", b"two", b"three"))
    cut, other = object(), object()
    first.carrier = second.carrier = cut  # type: ignore[assignment]
    third.carrier = other  # type: ignore[assignment]
    outgoing.acknowledge(3)
    assert outgoing.lost(cut) == [second]
    assert outgoing.lost(cut) == []
    assert outgoing.held == 8
    outgoing.acknowledge(11)
    assert not outgoing.done
    outgoing.ended = True
    outgoing.acknowledge(12)
    assert outgoing.done


def test_a_buffer_is_not_used_again_while_it_is_sent() -> None:
    """Broken: a block that is sent again would change under way, as its memory has other use."""
    buffers = Buffers()
    outgoing = Outgoing(0, buffers, Pace())
    block = block_of(outgoing, b"x" * BLOCK_SIZE)
    block.buffer, block.sending = buffers.take(), True
    buffer = block.buffer
    outgoing.acknowledge(BLOCK_SIZE)
    assert buffers.take() is not buffer
