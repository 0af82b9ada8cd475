"""Packets of a multifd channel, built in bulk, as the reader of a channel takes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol.events import RamBlock
from vmferry.protocol.pages import packets
from vmferry.protocol.reading.multifd_reader import ChannelReader
from vmferry.protocol.wire import multifd
from vmferry.protocol.wire.layout import dtype_of
from vmferry.protocol.wire.multifd import Compression
from vmferry.protocol.wire.multifd_machines import syncs_at_flush, zero_pages_in_packets

from tests.streams import listed

PAGE = 4096
COUNT = 1000
LISTED = listed([RamBlock("pc.ram", COUNT * PAGE)])
OFFSETS = st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=400, unique=True)


def reader() -> ChannelReader:
    """Return the reader of a channel that has been greeted."""
    made = ChannelReader()
    greeting = made.greet(memoryview(packets.hello(bytes(range(16)), 7)))
    assert (greeting.uuid, greeting.channel) == (bytes(range(16)), 7)
    made.list_blocks(LISTED)
    return made


def test_the_head_is_that_of_the_declaration() -> None:
    """Broken: numpy would put a field elsewhere than the declaration says."""
    dtype = dtype_of(multifd.PacketHeader)
    assert dtype.itemsize == multifd.PACKET_HEADER_SIZE
    names = [name for name in dtype.names or () if name != "block"]
    values = {name: 3 + number for number, name in enumerate(names)}
    made = np.zeros(1, dtype)
    for name, value in values.items():
        made[name] = value
    made["block"] = b"name"
    parsed = multifd.PacketHeader.parse(made.tobytes())
    assert {name: parsed[name] for name in names} == values
    assert parsed.block == b"name".ljust(256, b"\0")


@given(numbers=OFFSETS)
def test_pages_come_back(numbers: list[int]) -> None:
    """Broken: a packet would have pages in other places than those that were given."""
    offsets = np.array(numbers, np.uint64) * np.uint64(PAGE)
    for zero in (False, True):
        make = packets.zero_heads if zero else packets.page_heads
        heads = make(b"pc.ram", PAGE, offsets, Compression.NONE)
        channel, found = reader(), []
        for head in heads:
            packet = channel.read_head(memoryview(head.tobytes()))
            assert (len(packet.normal), len(packet.zero)).index(0) == (0 if zero else 1)
            assert packet.payload_size == len(packet.normal) * PAGE
            if packet.payload_size:
                channel.passed()
            found += [*packet.normal, *packet.zero]
        assert found == list(offsets)


def test_a_sync_point_has_no_pages() -> None:
    """Broken: the other side would not know where pages may come again."""
    packet = reader().read_head(memoryview(packets.sync_packet(PAGE, 9)))
    assert (packet.sync, packet.number, packet.block) == (True, 9, None)


@pytest.mark.parametrize("kind", [Compression.ZLIB, Compression.ZSTD])
def test_payloads_are_one_stream(kind: Compression) -> None:
    """Broken: a destination would not decompress the second packet of a channel."""
    random = np.random.default_rng(1)
    channel, deflater = reader(), packets.deflater(kind, 1)
    assert deflater is not None
    for number in range(3):
        pages = random.integers(0, 4, (5, PAGE), np.uint8)
        offsets = np.arange(5, dtype=np.uint64) * np.uint64(PAGE)
        heads = packets.page_heads(b"pc.ram", PAGE, offsets, kind)
        payload = deflater.deflate(pages)
        assert len(payload) < pages.nbytes / 2
        heads["header"]["payload_size"] = len(payload)
        packet = channel.read_head(memoryview(heads.tobytes()))
        assert packet.payload_size == len(payload), number
        assert (channel.pages(memoryview(payload)) == pages).all()


def test_no_compression_has_no_compressor() -> None:
    """Broken: pages would be copied although they go as they are."""
    assert packets.deflater(Compression.NONE, 1) is None


@pytest.mark.parametrize(
    ("machine", "flush", "in_packets"),
    [
        ("pc-i440fx-7.2", False, False),
        ("pc-q35-8.0", False, False),
        ("pc-q35-8.1", True, False),
        ("virt-8.2", True, False),
        ("pseries-9.0", True, True),
        ("pc-i440fx-10.0", True, True),
        ("microvm", True, True),
    ],
)
def test_what_a_machine_asks_for(machine: str, flush: bool, in_packets: bool) -> None:
    """Broken: an older QEMU would wait for a sync point for ever, or keep what is zero by now."""
    assert (syncs_at_flush(machine), zero_pages_in_packets(machine)) == (flush, in_packets)
