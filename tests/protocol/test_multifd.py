"""Multifd channels: declarations and reader."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from vmferry.protocol.errors import StreamError, UnsupportedError
from vmferry.protocol.reading.multifd_reader import ChannelReader, Packet
from vmferry.protocol.wire import multifd
from vmferry.protocol.wire.multifd import Compression

from tests.protocol.channels import BLOCKS, UUID, Channel, page
from tests.streams import PAGE, listed

LISTED = listed(BLOCKS)
KINDS = [Compression.NONE, Compression.ZLIB, Compression.ZSTD]
HEAD = multifd.HELLO_SIZE


def read(data: bytes) -> list[tuple[Packet, bytes]]:
    """Return each packet and its pages. Raises StreamError."""
    reader, view = ChannelReader(), memoryview(data)
    reader.greet(view[: reader.wanted])
    reader.list_blocks(LISTED)
    found = []
    while reader.offset < len(data):
        packet = reader.read_head(view[reader.offset : reader.offset + reader.wanted])
        pages = b""
        if packet.payload_size:
            assert reader.wanted == packet.payload_size
            assert reader.offset == packet.payload_offset
            payload = view[reader.offset : reader.offset + reader.wanted]
            pages = reader.pages(payload).tobytes()
        found.append((packet, pages))
    return found


def test_sizes() -> None:
    """Broken: every packet behind the first would be looked for at a wrong place."""
    assert (multifd.HELLO_SIZE, multifd.PACKET_HEADER_SIZE) == (64, 320)
    assert [multifd.pages_of_packet(size) for size in (4096, 65536)] == [128, 8]
    assert multifd.head_size(4096) == 320 + 128 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_packets(kind: Compression) -> None:
    """Broken: pages would be lost or go to wrong places; or a channel's compression would begin
    anew in each packet."""
    channel = Channel(3, kind)
    first = {at: page(at) for at in (5, 3, 60)}
    # The same content again is all but nothing, if the stream goes on.
    channel.send(7, first, [1, 2])
    channel.send(9, sync=True)
    channel.send(11, first, sync=True)
    channel.send(12, zero=[3], block="pc.rom")
    (one, pages), (sync, none), (two, again), (zero, _) = read(bytes(channel.data))
    assert pages == again == b"".join(first.values())
    assert none == b""
    assert (one.number, one.sync, one.block, one.block_index) == (7, False, BLOCKS[0], 0)
    assert one.normal.tolist() == [at * PAGE for at in first]
    assert one.zero.tolist() == [PAGE, 2 * PAGE]
    assert (sync.number, sync.sync, sync.block, sync.payload_size) == (9, True, None, 0)
    assert (two.number, two.sync) == (11, True)
    assert (zero.block, zero.block_index, zero.zero.tolist()) == (BLOCKS[1], 1, [3 * PAGE])
    if kind != Compression.NONE:
        assert two.payload_size < one.payload_size


def test_payload_is_not_copied() -> None:
    """Broken: each page of a live migration would be copied once more."""
    channel = Channel(0)
    channel.send(0, {1: page(1), 2: page(2)})
    data = np.frombuffer(bytes(channel.data), np.uint8).copy()
    reader = ChannelReader()
    reader.greet(data.data[:HEAD])
    reader.list_blocks(LISTED)
    packet = reader.read_head(data.data[HEAD : HEAD + reader.wanted])
    payload = data.data[packet.payload_offset :]
    assert np.shares_memory(reader.pages(payload), data)
    assert reader.offset == len(data)


def test_payload_received_elsewhere() -> None:
    """Broken: a payload could not be received straight into the guest's memory."""
    channel = Channel(0)
    channel.send(0, {1: page(1)})
    channel.send(1, sync=True)
    data, reader = memoryview(bytes(channel.data)), ChannelReader()
    reader.greet(data[:HEAD])
    reader.list_blocks(LISTED)
    packet = reader.read_head(data[HEAD : HEAD + reader.wanted])
    reader.passed()
    assert reader.offset == packet.payload_offset + PAGE
    assert reader.read_head(data[reader.offset : reader.offset + reader.wanted]).sync


def test_what_a_packet_without_pages_says() -> None:
    """Broken: channels of QEMU 7.2 could not be read: there it says what packets before said."""
    channel = Channel(0)
    channel.send(0, {1: page(1)})
    stale = {"payload_size": 524288, "allocated": 128, "block": b"pc.ram".ljust(256, b"\0")}
    channel.send(1, sync=True, changes=stale)
    channel.send(2, {2: page(2)})
    assert [pages for _, pages in read(bytes(channel.data))] == [page(1), b"", page(2)]


WRONG: dict[str, dict[str, Any]] = {
    "where a packet begins": {"magic": 0x11223345},
    "version 2 of a packet is not supported": {"version": 2},
    "state of a device": {"flags": 0x40},
    "flags 0x80": {"flags": 0x80},
    "flags 0x6": {"flags": 0x06},
    "compression by QPL": {"flags": 0x08},
    "compression by UADK": {"flags": 0x10},
    "compression by QATZIP": {"flags": 0x20},
    "with room for 128": {"allocated": 129},
    "200 and 0 pages of 128": {"normal": 200},
    "2 and 127 pages of 128": {"zero": 127},
    "2 and 0 pages of 1,": {"allocated": 1},
    "a payload of 8191 bytes for 2 pages of 4096": {"payload_size": 8191},
    "a payload of 0 bytes": {"payload_size": 0},
    "a payload of 4294967295 bytes": {"payload_size": 0xFFFFFFFF},
    "unknown block b'pc.rum'": {"block": b"pc.rum".ljust(256, b"\0")},
    "unknown block b''": {"block": bytes(256)},
    "unknown block b'xxx": {"block": b"x" * 256},
    "unknown block b'pc.ram\\x07'": {"block": b"pc.ram\x07".ljust(256, b"\0")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_headers(message: str) -> None:
    """Broken: a damaged packet would be taken for pages, or for room without end."""
    channel = Channel(1)
    channel.send(0, {1: page(1)})
    place = len(channel.data)
    channel.send(1, {1: page(1), 2: page(2)}, changes=WRONG[message])
    with pytest.raises(StreamError) as caught:
        read(bytes(channel.data))
    assert message in caught.value.message
    assert (caught.value.offset, caught.value.section) == (place, "multifd channel 1")


@pytest.mark.parametrize("at", [64 * PAGE, PAGE + 1, (1 << 64) - PAGE])
@pytest.mark.parametrize("zero", [False, True])
def test_pages_outside(at: int, zero: bool) -> None:
    """Broken: a page would be written outside the guest's RAM."""
    channel = Channel(1)
    channel.send(0, {1: page(1)}, [2])
    offsets = HEAD + multifd.PACKET_HEADER_SIZE + (8 if zero else 0)
    channel.data[offsets : offsets + 8] = at.to_bytes(8, "big")
    with pytest.raises(StreamError, match=f"a page at {at:#x} of block pc.ram, outside"):
        read(bytes(channel.data))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_payloads(kind: Compression, change: int) -> None:
    """Broken: what makes more or less than the packet's pages would shift all that follows."""
    channel = Channel(0, kind)
    channel.send(0, {at: page(at) for at in range(3)}, changes={"normal": 3 + change})
    less = "fewer" if change > 0 else "more"
    with pytest.raises(StreamError, match=rf"{kind.name.lower()}: it makes {less} than"):
        read(bytes(channel.data))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_bombs(kind: Compression) -> None:
    """Broken: a small payload would be inflated to gigabytes before anybody looks."""
    channel = Channel(0, kind)
    channel.send(0, {0: bytes(1 << 27)})
    with pytest.raises(StreamError, match="more than 4096 bytes"):
        read(bytes(channel.data))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_compression_changes(kind: Compression) -> None:
    """Broken: a payload would be read as a piece of another stream."""
    channel = Channel(0, kind)
    channel.send(0, {0: page(0)})
    channel.compression = Compression.NONE
    channel.send(1, {0: page(0)})
    with pytest.raises(StreamError, match="compression changes within the channel: none behind"):
        read(bytes(channel.data))


def test_greetings() -> None:
    """Broken: another file, or another version, would be read as a channel."""
    data = bytes(Channel(200).data)
    greeting = ChannelReader().greet(memoryview(data))
    assert (greeting.uuid, greeting.channel) == (UUID, 200)
    with pytest.raises(StreamError, match="not a multifd channel"):
        ChannelReader().greet(memoryview(b"QEVM" + data[4:]))
    with pytest.raises(UnsupportedError, match="version 2 of multifd is not supported"):
        ChannelReader().greet(memoryview(data[:7] + b"\2" + data[8:]))


def _damaged(kind: Compression) -> bytes:
    channel = Channel(0, kind)
    channel.send(0, {at: page(at) for at in range(2)}, [9])
    channel.send(1, {3: page(3)}, sync=True)
    return bytes(channel.data)


def _outcome(data: bytes) -> tuple[list[tuple[Packet, bytes]], StreamError | None]:
    try:
        return read(data), None
    except StreamError as error:
        return [], error


WHOLE = {kind: _damaged(kind) for kind in KINDS}
VARIANTS = 20_000
HEADS = HEAD + multifd.PACKET_HEADER_SIZE + 64
"""Bytes of the greeting, and of the first packet up to some offsets."""


def test_damage() -> None:
    """Broken: a damaged channel would end in a traceback, or write outside the guest's RAM."""
    refused = 0
    for number in range(VARIANTS):
        chance = random.Random(number)
        data = bytearray(WHOLE[chance.choice(KINDS)])
        reach = chance.choice([HEADS, len(data)])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(reach)] = chance.choice([0, 1, 255, chance.randrange(256)])
        found, error = _outcome(bytes(data))
        if error is not None:
            refused += 1
            assert 0 <= error.offset <= len(data), number
            assert "\n" not in str(error), number
        for packet, pages in found:
            assert len(pages) == len(packet.normal) * PAGE, number
            if packet.block is not None:
                for offsets in (packet.normal, packet.zero):
                    assert (offsets + np.uint64(PAGE) <= packet.block.length).all(), number
    assert VARIANTS / 8 < refused < VARIANTS
