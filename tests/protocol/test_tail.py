"""Devices behind RAM, found from both ends of what is damaged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from vmferry.protocol import events
from vmferry.protocol.rescue.tail import Tail, find_description, find_tail

from tests.streams import description, device, to_bytes

DEVICES = [device(3, "timer", bytes(range(90))), device(4, "cpu", b"c" * 300)]
DEVICES += [device(5, "screen", b"s" * 500), device(6, "disk", b"d" * 40)]
START = 50


def _tail(sections: list[events.DeviceSection], described: bool = True) -> bytes:
    ends: list[events.Event] = [events.EndOfStream(0)]
    ends += [description(DEVICES)] if described else []
    return bytes(START) + to_bytes([*sections, *ends])


def _find(data: bytes, start: int | None = START) -> Tail:
    return find_tail(partial(_read, data), len(data), start, [])


def _read(data: bytes, at: int, size: int) -> bytes:
    return data[at : at + size]


def _names(tail: Tail) -> list[str]:
    return [event.name for event in tail.found if isinstance(event, events.DeviceSection)]


@pytest.mark.parametrize("start", [START, None])
def test_all_of_them(start: int | None) -> None:
    """Broken: a section would be lost, or where RAM ends not be known."""
    tail = _find(_tail(DEVICES), start)
    assert (_names(tail), tail.lost, tail.start) == (["timer", "cpu", "screen", "disk"], [], START)
    assert tail.confirmed
    assert [type(event) for event in tail.found[-2:]] == [events.EndOfStream, events.Description]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("start", [START, None])
def test_one_is_damaged(number: int, start: int | None) -> None:
    """Broken: one damaged section would cost the others, or be called sound."""
    data = bytearray(_tail(DEVICES))
    # Its footer's id.
    end = data.index(b"\x7e\0\0\0" + bytes([3 + number]), START)
    data[end + 4] = 0
    tail = _find(bytes(data), start)
    names = [section.name for section in DEVICES]
    assert tail.lost == [(name, 0) for name in names if name not in _names(tail)]
    kept = names[number + 1 :] if start is None else names[:number] + names[number + 1 :]
    assert _names(tail) == kept


def test_a_version_that_is_a_date() -> None:
    """Broken: a device whose version is a date would be lost from each damaged stream."""
    dated = [replace(each, version=20061113) for each in DEVICES]
    damaged = _tail(dated, described=False) + b"\x06\0\0\0\x09damaged"
    for data in (_tail(dated), damaged):
        assert _names(_find(data)) == [each.name for each in DEVICES]


def test_forged_section() -> None:
    """Broken: what a guest wrote into a damaged device would be another device."""
    forged = to_bytes([device(6, "disk", b"f" * 40)])
    screen = device(5, "screen", forged.ljust(500, b"s"))
    data = bytearray(_tail([*DEVICES[:2], screen, DEVICES[3]]))
    at = data.rindex(b"disk", 0, data.index(b"d" * 40))
    data[at - 1] = 0
    data[data.index(b"screen") - 2] ^= 1
    tail = _find(bytes(data))
    assert _names(tail) == ["timer", "cpu"]
    assert tail.lost == [("screen", 0), ("disk", 0)]


def test_without_a_description() -> None:
    """Broken: the devices would be lost with what describes them, or be called certain."""
    data = _tail(DEVICES, described=False) + b"\x06\0\0\0\x09damaged"
    tail = _find(data)
    assert _names(tail) == ["timer", "cpu", "screen", "disk"]
    assert not tail.confirmed
    assert _names(_find(data, None)) == []


def test_description_is_found_from_the_end() -> None:
    """Broken: one that a guest wrote would come before the true one, or one that is cut be read."""
    data = _tail(DEVICES)
    forged = data[data.rindex(b"\0\6") :].replace(b"screen", b"forged")
    for whole in (forged + data, forged + data + bytes(3000)):
        found = find_description(partial(_read, whole), len(whole))
        assert found is not None
        assert b"screen" in found.text
    assert find_description(partial(_read, data[:-9]), len(data) - 9) is None
