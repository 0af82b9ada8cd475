"""Test that one line says what a multifd source gets wrong, and that no guest stays here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from vmferry.guest.directory import DirectoryGuest
from vmferry.guest.errors import MigrationError
from vmferry.protocol import events
from vmferry.protocol.wire import multifd
from vmferry.protocol.wire.multifd import Compression
from vmferry.receiver.coordinator import ReceiveParameters, Receiver
from vmferry.receiver.multifd import gathering

from tests.protocol.channels import BLOCKS, UUID, Channel, migration, page
from tests.receiver.multifd.arriving import Start
from tests.receiver.multifd.test_arrival import by_file
from tests.streams import closing, opening, ram_part, to_bytes

HEAD = multifd.head_size(4096)


def main(rounds: int = 1) -> bytes:
    """Return a main channel with a sync point at its beginning, and one behind each round."""
    first = opening(BLOCKS, answers=True)
    mark = events.MultifdFlush(0)
    pieces = [event for _ in range(rounds) for event in ram_part(mark)]
    return to_bytes([*first[:-2], mark, *first[-2:], *pieces, *closing()])


def channel(number: int, compression: Compression = Compression.NONE) -> Channel:
    """Return a channel up to its first sync point; its packets have numbers of one digit."""
    begun = Channel(number, compression)
    begun.send(number, sync=True)
    return begun


@dataclass(frozen=True)
class Row:
    """Something wrong in the packet that channel 1 sends first behind its first sync point."""

    wrong: Callable[[Channel], None]
    says: str
    within: bool = True
    """True if the packet's number is known, and so named."""


def packet(**changes: object) -> Callable[[Channel], None]:
    """Return what sends a packet with these fields changed."""
    return lambda to: to.send(7, {3: page(1), 4: page(2)}, [9], changes=changes)


def offset(place: int, value: int) -> Callable[[Channel], None]:
    """Return what sends a packet whose offset at this place of the list is another."""

    def send(to: Channel) -> None:
        start = len(to.data) + multifd.PACKET_HEADER_SIZE + 8 * place
        to.send(7, {3: page(1), 4: page(2)}, [9])
        to.data[start : start + 8] = value.to_bytes(8, "big")

    return send


def other_compression(to: Channel) -> None:
    """Send a packet of another kind than the one behind it."""
    to.send(5, {1: page(1)})
    Channel.__dict__["send"](to, 7, {1: page(1)}, changes={"flags": int(Compression.ZLIB)})


def broken_payload(to: Channel) -> None:
    """Send a packet whose payload is no zlib."""
    packet(flags=int(Compression.ZLIB), payload_size=2 * 4096)(to)


TABLE = {
    "magic": Row(packet(magic=0x11223345), "0x11223345 where a packet begins", within=False),
    "version": Row(packet(version=2), "version 2 of a packet is not supported"),
    "flags": Row(packet(flags=0x80), "a packet with flags 0x80"),
    "device state": Row(packet(flags=0x40), "state of a device (VFIO) is not supported"),
    "compression": Row(packet(flags=8), "compression by QPL is not supported"),
    "count": Row(packet(normal=0xFFFFFFFF), "4294967295 and 1 pages of 128"),
    "zero count": Row(packet(zero=127), "2 and 127 pages of 128"),
    "room": Row(packet(allocated=129), "with room for 128"),
    "size": Row(packet(payload_size=4096), "a payload of 4096 bytes for 2 pages"),
    "much": Row(packet(payload_size=1 << 31), "a payload of 2147483648 bytes for 2 pages"),
    "name": Row(packet(block=b"pc.rem".ljust(256, b"\0")), "an unknown block b'pc.rem'"),
    "endless name": Row(packet(block=b"x" * 256), "an unknown block"),
    "outside": Row(offset(0, 64 * 4096), "a page at 0x40000 of block pc.ram, outside"),
    "far outside": Row(offset(1, (1 << 64) - 4096), "outside its RAM"),
    "between": Row(offset(0, 17), "a page at 0x11 of block pc.ram"),
    "zero outside": Row(offset(2, 64 * 4096), "a page at 0x40000 of block pc.ram, outside"),
    "payload": Row(broken_payload, "that is not 2 pages in zlib"),
    "changes": Row(other_compression, "zlib behind none"),
    "cut": Row(lambda to: to.data.extend(bytes(100)), "the channel ends within a packet", False),
}


@pytest.mark.parametrize("name", TABLE)
def test_packet(name: str, receive: Start) -> None:
    """Broken: a damaged packet would be written to guest memory, or nobody would know which."""
    row = TABLE[name]
    good, bad = channel(0), channel(1)
    row.wrong(bad)
    arriving = receive()
    arriving.source.main(main())
    arriving.source.connect(bytes(good.data))
    arriving.source.connect(bytes(bad.data), ends=True)
    error = arriving.fails()
    assert row.says in error
    assert "section 'multifd channel 1'" in error
    assert error.startswith("offset 0x")
    assert ("(packet 7)" in error) == row.within


def test_offset_is_that_in_the_channel(receive: Start) -> None:
    """Broken: who looks into a capture would look at a wrong place."""
    bad = channel(1)
    bad.send(2, {1: page(1)})
    place = len(bad.data)
    packet(magic=0)(bad)
    arriving = receive()
    arriving.source.main(main())
    arriving.source.connect(bytes(channel(0).data))
    arriving.source.connect(bytes(bad.data))
    expected = f"offset {place:#x} (section 'multifd channel 1'): 0x00000000"
    assert arriving.fails() == f"{expected} where a packet begins, behind packet 2"


def test_unlike_compressions(receive: Start) -> None:
    """Broken: nobody would see that the channels are of different migrations."""
    arriving = receive()
    for number, kind in enumerate((Compression.ZLIB, Compression.ZSTD)):
        one = channel(number, kind)
        one.send(2 + number, {number: page(1)})
        one.send(4 + number, sync=True)
        arriving.source.connect(bytes(one.data))
    arriving.source.main(main())
    assert "compressed by zstd, channel 0 by zlib" in arriving.fails()


def sync(to: Channel) -> None:
    to.send(6, sync=True)


def pages(to: Channel) -> None:
    to.send(8, {1: page(1)})


ENDS: dict[str, tuple[list[Callable[[Channel], None]], str]] = {
    "a sync point too few": ([pages], "the channel ended before sync point 1 of the main channel"),
    "a sync point too many": ([sync, sync], "a sync point behind the last"),
    "pages too many": ([sync, pages], "pages behind the last sync point"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("first", ["main", "channel"])
def test_end(name: str, first: str, receive: Start) -> None:
    """Broken: a guest would start before all of its pages were in place, or without some."""
    steps, says = ENDS[name]
    good, bad = channel(0), channel(1)
    sync(good)
    for step in steps:
        step(bad)
    arriving = receive()
    if first == "main":
        arriving.source.main(main())
    arriving.source.connect(bytes(good.data))
    arriving.source.connect(bytes(bad.data), ends="few" in name)
    if first == "channel":
        arriving.source.main(main())
    error = arriving.fails()
    assert says in error
    assert "multifd channel 1" in error


def test_channel_of_a_number_too_high(receive: Start) -> None:
    """Broken: a source with more channels would wait for ever, or lose the pages on them."""
    arriving = receive()
    arriving.source.main(main())
    arriving.source.connect(bytes(channel(2).data))
    assert "has a multifd channel 2, the last one expected is 1" in arriving.fails()


def test_main_channel_of_another_machine(receive: Start) -> None:
    """Broken: the pages of one machine would get into another."""
    arriving = receive()
    arriving.source.main(main())
    for number in range(2):
        one = Channel(number, uuid=bytes(16))
        arriving.source.connect(bytes(one.data))
    error = arriving.fails()
    assert "different machines" in error
    assert UUID.hex() in error


def test_missing_channel(receive: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a source without multifd, or with fewer channels, would wait for ever."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.5)
    arriving = receive()
    arriving.source.connect(bytes(channel(1).data))
    arriving.source.main(main())
    assert "1 of 2 multifd channels arrived within" in arriving.fails()


def test_source_that_leaves(receive: Start) -> None:
    """Broken: a source that failed while it connected would be waited for."""
    arriving = receive()
    arriving.source.connect(bytes(channel(1).data))
    arriving.source.connect(main(), ends=True)
    assert "closed a connection before it had opened all" in arriving.fails()


def test_others_are_refused(receive: Start) -> None:
    """Broken: another source would break a migration, or mix its pages into it."""
    made = migration()
    arriving = receive()
    arriving.source.main(made.main)
    arriving.source.connect(made.channels[0])
    others = {
        "a source is connected already": main(),
        "multifd channel 0 is connected already": bytes(channel(0).data),
        "another machine: its UUID differs": bytes(Channel(1, uuid=bytes(16)).data),
        "version 9 of multifd": b"\x11\x22\x33\x44\0\0\0\x09" + bytes(56),
        "it does not begin as it should": b"GET / HTTP/1.0\r\n\r\n",
    }
    for count, (reason, data) in enumerate(others.items()):
        arriving.source.connect(data, ends=True)
        arriving.until_refused(count + 1)
        assert reason in arriving.refused[count]
    arriving.source.connect(made.channels[1])
    assert by_file(arriving.arrives()) == by_file(made.ram)


def test_one_connection_is_too_few(tmp_path: Path) -> None:
    """Broken: a receiver would wait for connections that cannot come."""
    guest = DirectoryGuest(str(tmp_path / "guest"))
    receiver = Receiver(guest, "exec:sleep 9", ReceiveParameters(multifd_channels=2))
    with pytest.raises(MigrationError, match="listen on tcp: or unix:"):
        receiver.run()
    guest.close()


def test_channel_where_none_is_expected(receive: Start) -> None:
    """Broken: nobody would see that this end has to be told of the channels."""
    arriving = receive(None)
    arriving.source.connect(bytes(channel(0).data))
    arriving.until_refused(1)
    assert "--multifd-channels" in arriving.refused[0]
