"""Test where device sections end."""

from __future__ import annotations

from typing import Any

import pytest
from vmferry.protocol import events
from vmferry.protocol.devices.description import Length, described_lengths
from vmferry.protocol.errors import StreamError
from vmferry.protocol.wire.stream import section_footer

from tests.streams import closing, description, device, opening, read, to_bytes

FOOTER = section_footer(3)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "payload",
    [
        FOOTER,
        FOOTER + FOOTER,
        FOOTER + b"\x00",
        FOOTER + b"\x04\x00\x00\x00\x01\x03cpu" + bytes(8),
        FOOTER + b"\x02\x00\x00\x00\x02",
        FOOTER + b"\x08\x00\x63\x00\x00",
        FOOTER + b"\x08\x00\x01\xff\xff" + bytes(2000),
        b"\x7e\x00\x00\x00",
    ],
)
def test_a_footer_inside_a_payload_is_not_the_end(payload: bytes, step: int) -> None:
    """Broken: a device whose state looks like a footer would be cut in two."""
    devices = [device(3, "timer", payload + b"."), device(4, "cpu", payload)]
    stream = to_bytes([*opening(), *closing(devices)])
    found = [e for e in read(stream, step) if isinstance(e, events.DeviceSection)]
    assert [e.payload for e in found[1:]] == [payload + b".", payload]


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_the_description_corrects_the_search(step: int) -> None:
    """Broken: a device state that holds a whole stream's pieces would be taken apart."""
    inner = to_bytes([device(5, "inner", b"state")])
    fake = b"before" + FOOTER + inner[: -len(FOOTER)]
    devices = [device(3, "timer", fake), device(4, "cpu", b"registers")]
    stream = to_bytes([*opening(), *closing(devices)])
    found = read(stream, step)
    sections = [e for e in found if isinstance(e, events.DeviceSection)]
    assert [e.payload for e in sections[1:]] == [fake, b"registers"]
    assert to_bytes(found) == stream


def test_a_section_unlike_its_description_is_refused() -> None:
    """Broken: device state that lost or gained bytes would be loaded."""
    told = description([device(3, "timer", b"12345")])
    end = [*closing([device(3, "timer", b"1234")])[:-1], told]
    with pytest.raises(StreamError, match=r"section 'timer'.*has 4 bytes, its description 5"):
        read(to_bytes([*opening(), *end]), 1 << 20)


def test_described_lengths() -> None:
    """Broken: arrays, structures or subsections would be counted wrongly."""
    inner = {"vmsd_name": "x/y", "version": 1, "fields": [{"name": "f", "type": "u8", "size": 1}]}
    struct = {"name": "s", "type": "struct", "size": 10, "struct": inner}
    fields = [struct, {"name": "a", "type": "u32", "size": 4, "array_len": 3}]
    plain = {"name": "d", "instance_id": 1, "fields": [struct], "subsections": [inner]}
    array = {"name": "d", "instance_id": 2, "fields": fields}
    assert described_lengths({"devices": [plain, array]}) == {
        ("d", 1): Length(10 + (1 + 1 + 3 + 4 + 1), True),
        ("d", 2): Length(10 + 12, False),
    }


def _described(**more: Any) -> list[dict[str, Any]]:
    return [{"name": "d", "instance_id": 0, **more}]


def _nested(levels: int) -> dict[str, Any]:
    structure: dict[str, Any] = {"vmsd_name": "s", "version": 1}
    for _ in range(levels):
        structure = {"vmsd_name": "s", "version": 1, "subsections": [structure]}
    return structure


@pytest.mark.parametrize(
    "devices",
    [
        1,
        [1],
        [{}],
        [{"name": "d", "instance_id": "x"}],
        [{"name": ["d"], "instance_id": 0}],
        _described(fields={}),
        _described(fields=[1]),
        _described(fields=[{"size": 1, "array_len": 10**12}]),
        _described(fields=[{"size": -8}]),
        _described(fields=[{"size": True}]),
        _described(subsections=[{"vmsd_name": "x" * 256, "version": 1}]),
        _described(subsections=[{"vmsd_name": "x"}]),
        _described(subsections=[_nested(200)]),
    ],
)
def test_senseless_descriptions_are_refused(devices: object) -> None:
    """Broken: a hostile description would end in a traceback."""
    stream = to_bytes([*opening(), *closing()[:-1]])
    stream += to_bytes([description([], devices=devices)])
    with pytest.raises(StreamError):
        read(stream, 1 << 20)
