"""Test where sections and streams end, whatever a guest has written into its devices."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.devices import candidates
from vmferry.protocol.errors import StreamError
from vmferry.protocol.reader import StreamReader
from vmferry.protocol.wire.kept import KeptInMemory, whole
from vmferry.protocol.wire.marks import SectionType
from vmferry.protocol.wire.stream import section_footer

from tests.streams import (
    EARLY,
    closing,
    description,
    description_of,
    device,
    opening,
    ram_piece,
    ram_start,
    read,
    to_bytes,
)

TIMER, GPU, NVME, TPM = 3, 4, 5, 6


def _stream(*devices: events.DeviceSection, told: Any = None) -> bytes:
    """Return a stream with these devices; `told`: its description, if not theirs."""
    *rest, described = closing(devices)
    return to_bytes([*opening(), *rest, told or described])


def _payloads(found: list[events.Event]) -> list[bytes]:
    return [whole(e.payload) for e in found if isinstance(e, events.DeviceSection)]


def forged(before: list[events.DeviceSection], inside: events.DeviceSection) -> bytes:
    """Return the end of the section, EOF and a complete description that fits all up to here.

    `inside`: the device that holds it, with what its payload has before the forgery.
    """
    end = to_bytes([events.EndOfStream(0), description([EARLY, *before, inside])])
    return section_footer(inside.section_id) + end


@pytest.mark.parametrize("step", [1 << 20, 4099])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_complete_description_inside_a_device(place: int, times: int, step: int) -> None:
    """Broken: a guest that writes the end of its own stream into a framebuffer, an NVMe queue or a
    TPM's state would lose all devices behind it."""
    devices = [
        device(TIMER, "timer", b"1" * 24),
        device(GPU, "0000:00:04.0/virtio-gpu", b"\x7f" * 9000),
        device(NVME, "nvme", b"queue" * 300),
        device(TPM, "tpm-emulator", b"state" * 700),
        device(7, "globalstate", b"running"),
    ]
    before, victim = devices[: place + 1], devices[place + 1]
    payload = whole(victim.payload)[:500]
    for _ in range(times):
        held = device(victim.section_id, victim.name, payload)
        payload += forged(before, held) + b"go on"
    devices[place + 1] = device(victim.section_id, victim.name, payload + bytes(9000))
    data = _stream(*devices)
    found = read(data, step)
    assert _payloads(found)[1:] == [d.payload for d in devices]
    assert to_bytes(found) == data


@pytest.mark.parametrize(
    "tail", [b"", bytes(70_000), b"\0\6old data" * 9000, b"\0\6\0\0\0\2{}" * 99]
)
def test_bytes_behind_the_stream(tail: bytes) -> None:
    """Broken: a stream on a volume that is larger than it would end elsewhere, or nowhere."""
    gpu = device(GPU, "gpu", forged([], device(GPU, "gpu", b"")) + bytes(900))
    data = _stream(gpu, device(NVME, "nvme", b"queue"))
    reader = StreamReader()
    reader.feed(data + tail)
    assert reader.whole == (not tail)
    assert _payloads(reader.close())[-1] == b"queue"
    assert (reader.end, reader.behind) == (len(data), len(tail))


def test_nothing_is_believed_before_a_description_confirms_it() -> None:
    """Broken: a forged end would be taken on a connection as soon as it has arrived."""
    gpu = device(GPU, "gpu", b"pixels")
    fake = forged([], gpu)
    data = _stream(device(GPU, "gpu", b"pixels" + fake + bytes(3000)), device(NVME, "nvme", b"q"))
    stop = data.index(fake) + len(fake)
    reader = StreamReader()
    assert not any(
        isinstance(e, (events.EndOfStream, events.DeviceSection))
        for e in reader.feed(data[:stop])
        if e.offset > 500
    )
    # So far it is as good as whole: what follows tells.
    assert reader.whole
    reader.feed(data[stop : stop + 1])
    assert not reader.whole
    reader.feed(data[stop + 1 :])
    assert reader.whole
    assert _payloads(reader.close())[-1] == b"q"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["devices"].pop(),
        lambda d: d["devices"].append({"name": "x", "instance_id": 0}),
        lambda d: d["devices"].reverse(),
        lambda d: d["devices"][1].update(name="other"),
        lambda d: d["devices"][1].update(instance_id=1),
        lambda d: d["devices"][1].update(version=9),
        lambda d: d["devices"][1]["fields"][0].update(size=7),
        lambda d: d["devices"][0]["fields"][0].update(size=9),
        lambda d: d.update(page_size=8192),
        lambda d: d.update(devices=[{}]),
    ],
)
def test_a_description_that_does_not_fit_confirms_nothing(change: Any) -> None:
    """Broken: an end would be believed though a section is not as described."""
    devices = [device(TIMER, "timer", b"12345678"), device(GPU, "gpu", b"pixel")]
    value = json.loads(description([EARLY, *devices]).text)
    assert read(_stream(*devices))
    change(value)
    told = description_of(value)
    data, reader = _stream(*devices, told=told), StreamReader()
    reader.feed(data)
    assert not reader.whole
    with pytest.raises(StreamError):
        reader.close()


PIECES = st.sampled_from(
    [
        b"\0",
        b"\0\6\0\0\0\2{}",
        b'\0\6\0\0\0\x0e{"devices":[]}',
        *(section_footer(number) for number in (1, 2, TIMER, GPU, NVME)),
        *(section_footer(number) + b"\0\6" for number in (TIMER, GPU, NVME)),
        b"\4\0\0\0\5\4nvme" + bytes(8),
        b"\4\0\0\0\x63\3new" + bytes(8),
        b"\1\0\0\0\x63\3ram" + bytes(7) + b"\4",
        b"\2\0\0\0\2",
        b"\3\0\0\0\2",
        b"\x08\0\1\0\0",
        b"}",
        b"a few bytes",
    ]
)


@settings(deadline=None, max_examples=150)
@given(parts=st.lists(st.lists(PIECES, max_size=12).map(b"".join), min_size=3, max_size=3))
def test_pieces_of_streams_in_every_device(parts: list[bytes]) -> None:
    """Broken: footers, ends and heads of sections that a guest writes would change what is read."""
    names = [(TIMER, "timer"), (GPU, "gpu"), (NVME, "nvme")]
    devices = [
        device(number, name, part) for (number, name), part in zip(names, parts, strict=True)
    ]
    data = _stream(*devices)
    found = read(data)
    assert _payloads(found)[1:] == parts
    assert to_bytes(found) == data
    reader = StreamReader()
    for at in range(0, len(data), 997):
        reader.feed(data[at : at + 997])
    assert reader.whole
    assert to_bytes(reader.close()[-1:]) == to_bytes(found[-1:])


def _array(size: int, count: int) -> dict[str, Any]:
    return {"name": "a", "type": "struct", "size": size, "array_len": count}


def test_arrays_that_are_described_by_their_first_element() -> None:
    """Broken: devices of QEMU before 10.0 whose arrays have elements of several sizes would be
    refused, or a footer in one of them be taken for its end."""
    first = device(TIMER, "first", section_footer(TIMER) + b"\4\0\0\0\4\5other" + bytes(30))
    last = device(GPU, "last", b"0" + section_footer(GPU) + b"0")
    value = json.loads(description([EARLY, first, last]).text)
    value["devices"][1]["fields"] = [_array(1, 4)]
    value["devices"][2]["fields"] = [_array(1, 3)]
    told = description_of(value)
    data = _stream(first, last, told=told)
    assert _payloads(read(data))[1:] == [first.payload, last.payload]
    # Where they may end at several places, nobody guesses.
    fake = section_footer(TIMER) + to_bytes([device(GPU, "last", b"")])[:-5]
    first, last = device(TIMER, "first", b"abc" + fake), device(GPU, "last", b"abc")
    data = _stream(device(TIMER, "first", b"abc" + fake), last, told=told)
    with pytest.raises(StreamError, match="may end at several places"):
        read(data)


@pytest.mark.parametrize("told", [True, False])
def test_a_version_that_is_a_date(told: bool) -> None:
    """Broken: the streams of guests with an i82551 would be refused, whose version is 20061113."""
    dated = replace(device(TIMER, "eeprom", b"12345"), version=20061113)
    devices = [dated, device(GPU, "gpu", b"pixels")]
    data = _stream(*devices) if told else to_bytes([*opening(), *closing(devices)[:-1]])
    assert _payloads(read(data))[-2:] == [b"12345", b"pixels"]
    versions = [e.version for e in read(data) if isinstance(e, events.DeviceSection)]
    assert versions[-2:] == [20061113, 1]


def test_without_description() -> None:
    """Broken: devices that nothing tells apart would be told apart by guess."""
    devices = [device(TIMER, "timer", b"12345"), device(GPU, "gpu", b"pixels")]
    data = to_bytes([*opening(), *closing(devices)[:-1]])
    for tail in (b"", bytes(5000)):
        reader = StreamReader()
        reader.feed(data + tail)
        assert reader.rest is not None
        assert reader.rest.bare()
        assert not reader.whole
        assert _payloads(reader.close()) == [b"12345", b"pixels"]
        assert (reader.end, reader.behind) == (len(data), len(tail))
    other = to_bytes([device(9, "other", b"")])[:-5]
    first = device(TIMER, "timer", b"12" + section_footer(TIMER) + other)
    again = to_bytes([device(NVME, "again", b"")])[:-5]
    last = device(NVME, "nvme", b"q" + section_footer(9) + again)
    alone, both = (to_bytes([*opening(), *closing(made)[:-1]]) for made in ([first], [first, last]))
    assert _payloads(read(alone))[1:] == [first.payload]
    (unsplit,) = [e for e in read(both) if isinstance(e, events.UnsplitDevices)]
    assert unsplit.data == to_bytes([first, last])
    assert to_bytes(read(both)) == both


OLD = b"old data of the volume\0" * 900 + b"old"


def _guess(data: bytes) -> tuple[StreamReader, list[events.Event]]:
    reader = StreamReader()
    found = reader.feed(data)
    assert reader.rest is not None
    assert not reader.rest.bare()
    assert not reader.whole
    found += reader.close()
    assert reader.guessed
    return reader, found


@pytest.mark.parametrize("tail", [b"\1", OLD, bytes(5000) + OLD, OLD + bytes(5000)])
def test_old_data_behind_a_stream_without_description(tail: bytes) -> None:
    """Broken: a stream with suppress-vmdesc=on in a volume with old data could not be read."""
    devices = [device(TIMER, "timer", b"12345"), device(GPU, "gpu", b"pixels")]
    data = to_bytes([*opening(), *closing(devices)[:-1]])
    reader, found = _guess(data + tail)
    assert _payloads(found)[1:] == [b"12345", b"pixels"]
    assert (reader.end, reader.behind) == (len(data), len(tail))
    reader = StreamReader(max_device_state=1 << 10)
    with pytest.raises(StreamError, match="more than 1024 bytes"):
        reader.feed(data + OLD)


@pytest.mark.parametrize("tail", [OLD, section_footer(GPU) + b"\0older" + OLD])
def test_ends_that_may_be_forged_where_old_data_follow(tail: bytes) -> None:
    """Broken: a guest would move the end of a stream that has no description forward, so that the
    devices behind it are lost."""
    held = b"12" + section_footer(TIMER) + b"\0" + bytes(30)
    devices = [device(TIMER, "timer", held), device(GPU, "gpu", b"pixels")]
    data = to_bytes([*opening(), *closing(devices)[:-1]])
    reader, found = _guess(data + tail)
    (unsplit,) = [e for e in found if isinstance(e, events.UnsplitDevices)]
    assert whole(unsplit.data).startswith(to_bytes(devices))
    assert reader.end == len(data) + (len(section_footer(GPU)) + 1 if tail != OLD else 0)


def test_a_damaged_description_is_no_old_data() -> None:
    """Broken: a stream whose description is cut or damaged would be read as if it had none."""
    devices = [device(TIMER, "timer", b"12345"), device(GPU, "gpu", b"pixels")]
    data = _stream(*devices)
    text = data.rindex(b'{"page_size')
    for at in range(text - 5, text + 2):
        with pytest.raises(StreamError):
            read(data[: at + 1])
        with pytest.raises(StreamError):
            read(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    broken = data.replace(b"12345", b"1234")
    for tail in (b"", OLD):
        with pytest.raises(StreamError, match="has 4 bytes, its description 5"):
            read(broken + tail)


def _alone(*devices: events.DeviceSection) -> bytes:
    """Return devices and nothing else, as Xen saves them."""
    return to_bytes([events.Header(0), *devices, events.EndOfStream(0)])


@pytest.mark.parametrize("tail", [b"", bytes(4096), OLD])
def test_devices_alone(tail: bytes) -> None:
    """Broken: the devices that Xen saves into a record of its own could not be read there."""
    devices = [device(TIMER, "timer", b"12345"), device(GPU, "gpu", b"pixels")]
    data, reader = _alone(*devices), StreamReader()
    for at in range(0, len(data + tail), 7):
        reader.feed((data + tail)[at : at + 7])
    found = reader.close()
    assert reader.guessed == (tail == OLD)
    if tail != OLD:
        assert _payloads(found) == [b"12345", b"pixels"]
        assert (reader.end, reader.behind) == (len(data), len(tail))
    else:
        # Whether sections have footers is not known: a guest may have made these.
        assert to_bytes(found[:-1]) == (data + tail)[8 : (data + tail).rindex(b"\0")]


def test_devices_alone_without_footers() -> None:
    """Broken: what a real Xen saves, in sections without footers, would be read to a forged end."""
    forged = b"123" + section_footer(TIMER) + b"\0" + bytes(30)
    devices = [
        events.DeviceSection(0, TIMER, "timer", 0, 1, forged, footer=False),
        events.DeviceSection(0, GPU, "gpu", 0, 1, b"pixels", footer=False),
    ]
    data = _alone(*devices)
    assert to_bytes(read(data)) == data
    _, found = _guess(data + OLD)
    assert to_bytes(found).startswith(data[:-1])
    with pytest.raises(StreamError, match="give --length"):
        read(data.replace(section_footer(TIMER), b"five.") + OLD + b"\1")


@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_a_section_before_ram(step: int) -> None:
    """Broken: what a virtio-mem device holds could end the stream before its RAM."""
    end = forged([], device(GPU, "gpu", b""))
    ram = to_bytes([*ram_start(), *ram_piece(SectionType.END)])
    fake = section_footer(1) + ram + to_bytes([device(GPU, "gpu", b"")]) + end[5:]
    early = device(1, "early", b"bits" + fake + b"more")
    devices = [device(GPU, "gpu", b"pixels")]
    head = opening(answers=True)[:3]
    data = to_bytes([*head, early, *ram_start(), *closing(devices, early=[early])])
    reader = StreamReader()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    assert not reader.whole
    with pytest.raises(StreamError, match=r"'early'.*has 4 bytes, its description"):
        reader.close()
    reader = StreamReader(described_size=lambda *_: len(early.payload))
    reader.feed(data)
    assert reader.whole
    assert _payloads(reader.close()) == [b"pixels"]


def test_candidates_cost_as_much_as_there_are_bytes() -> None:
    """Broken: a device full of what looks like descriptions would take hours to look through."""
    looked = 0

    class Counted(KeptInMemory):
        def read(self, start: int, size: int) -> bytes:
            nonlocal looked
            data = super().read(start, size)
            looked += len(data)
            return data

    kept, size = Counted(), 1 << 22
    lie = b"\0\6" + (size // 2).to_bytes(4, "big") + b"{"
    kept.append(memoryview(lie * (size // len(lie) - 1) + b"}" * 2 * len(lie)))
    assert list(candidates.candidates(kept)) == []
    assert looked < 40 * size
    last = candidates.LastCandidate(kept)
    looked = 0
    for _ in range(2000):
        kept.append(memoryview(b"{}"))
        assert last.find() is None
    assert looked < 3 * size


def test_damage_at_the_end_is_an_error_in_one_line() -> None:
    """Broken: a damaged end would be a traceback, or read as if it were sound."""
    devices = [device(TIMER, "timer", b"1" * 24), device(GPU, "gpu", forged([], EARLY) * 3)]
    whole, chance = _stream(*devices), random.Random(5)
    start = whole.index(b"\4\0\0\0\3\5timer")
    text = whole.rindex(b'{"page_size"')
    for _ in range(400):
        data = bytearray(whole)
        at = chance.randrange(start, text)
        data[at] ^= 1 << chance.randrange(8)
        caught, found = None, []
        try:
            found = read(bytes(data))
        except StreamError as error:
            caught = error
        if caught is None:
            assert to_bytes(found) == data
        else:
            assert "\n" not in str(caught)
            assert start <= caught.offset <= len(data)
    for at in range(start, len(whole), 37):
        with pytest.raises(StreamError):
            read(whole[:at])
