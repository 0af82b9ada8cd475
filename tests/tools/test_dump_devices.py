"""`vmferry dump --devices`: the fields of devices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import streams

PAYLOAD = b"\0\0\0\x2a\xff\xfe\1\0\1\0\2\0\3\5\xf00\1\2\3\5\3c/x\0\0\0\1\7"
FIELDS = [
    {"name": "count", "type": "uint32", "size": 4},
    {"name": "level", "type": "int16", "size": 2},
    {"name": "on", "type": "bool", "size": 1},
    {"name": "regs", "type": "uint16", "size": 2, "array_len": 3},
    {
        "name": "port",
        "type": "struct",
        "size": 1,
        "array_len": 2,
        "struct": {
            "vmsd_name": "port",
            "version": 1,
            "fields": [{"name": "state", "type": "int8", "size": 1}],
        },
    },
    {"name": "next", "type": "nullptr", "size": 1},
    {"name": "clock", "type": "timer", "size": 3},
]
SUBSECTION = {
    "vmsd_name": "c/x",
    "version": 1,
    "fields": [{"name": "extra", "type": "uint8", "size": 1}],
}
DEVICE = {"name": "c", "version": 2, "fields": FIELDS, "subsections": [SUBSECTION]}


def make(more: tuple[tuple[str, Any], ...] = ()) -> bytes:
    """Return a stream with two devices `c`, described field by field, and one that is not
    described.
    """
    devices = [
        streams.device(3, "c", PAYLOAD, version=2),
        streams.device(4, "c", PAYLOAD.replace(b"\x2a", b"\x2b"), 1, version=2),
        streams.device(5, "bare", b"abc"),
    ]
    described = [{**DEVICE, "instance_id": instance} for instance in (0, 1)]
    bare = {"name": "data", "type": "buffer", "size": 3}
    described.append({"name": "bare", "instance_id": 0, "version": 1, "fields": [bare]})
    told = streams.description_of({"page_size": 4096, "devices": described, **dict(more)})
    return streams.to_bytes([*streams.opening(), *streams.closing(devices)[:-1], told])


@pytest.fixture
def path(vmferry: Any) -> str:
    return str(vmferry.write("stream", make()))


def test_name_without_path(vmferry: Any) -> None:
    """Broken: a device on a bus would be found only by a path that nobody knows by heart."""
    names = ("0000:00:02.0/net", "0000:00:03.0/net", "0000:00:03.0/disk", "disk")
    devices = [streams.device(number, name, b"abc") for number, name in enumerate(names, 3)]
    made = [*streams.opening(), *streams.closing(devices)]
    path = vmferry.write("stream", streams.to_bytes(made))
    for name, found in (
        ("net", names[:2]),
        ("net#0", names[:2]),
        (names[1], names[1:2]),
        # A whole name is no short one.
        ("disk", names[3:]),
    ):
        ran = vmferry.call("dump", "--json", path, "--devices", name)
        assert [each["name"] for each in json.loads(ran.stdout)["devices"]] == list(found)
    assert "no device 'et'" in vmferry.call("dump", path, "--devices", "et").stderr


def test_fields_for_people(path: str, vmferry: Any) -> None:
    """Broken: people would see other values than the device has, or look for them elsewhere."""
    start = make().index(PAYLOAD)
    result = vmferry.call("dump", path, "--devices", "c#0")
    assert result.exit_code == 0
    first, *rows = result.stdout.splitlines()
    assert first == f"c#0  section 3, version 2, {len(PAYLOAD)} bytes"
    words = [row.split() for row in rows]
    assert [row[1:] for row in words] == [
        ["count", "uint32", "0x2a"],
        ["level", "int16", "-2"],
        ["on", "bool", "true"],
        ["regs", "uint16[3]", "0x1", "0x2", "0x3"],
        ["port[0]", "struct"],
        ["state", "int8", "5"],
        ["port[1]", "struct"],
        ["state", "int8", "-16"],
        ["next", "nullptr", "null"],
        ["clock", "timer", "01", "02", "03"],
        ["c/x", "subsection"],
        ["extra", "uint8", "0x7"],
    ]
    places = [tuple(int(edge, 16) - start for edge in row[0].split("-")) for row in words]
    assert places[:6] == [(0, 4), (4, 6), (6, 7), (7, 13), (13, 14), (13, 14)]
    assert places[-2:] == [(19, 29), (28, 29)]
    # What is inside stands further right than what it is in.
    assert rows[5].index("state") == rows[4].index("port[0]") + 2


def test_instances(path: str, vmferry: Any) -> None:
    """Broken: of two devices of one name, the wrong one would be shown."""
    both = vmferry.call("dump", path, "--devices", "c").stdout
    assert [line[:3] for line in both.splitlines() if line[0] == "c"] == ["c#0", "c#1"]
    second = vmferry.call("dump", path, "--devices", "c#1").stdout
    assert "0x2b" in second
    assert "0x2a" not in second


def test_unknown_device(path: str, vmferry: Any) -> None:
    """Broken: a mistyped name would look like a device without fields."""
    for options in ((), ("--json",)):
        result = vmferry.call("dump", path, *options, "--devices", "c#2")
        assert result.exit_code == 1
        assert result.stdout == ""
        message = f"vmferry: {path}: no device 'c#2' in the stream (--devices lists them)\n"
        assert result.stderr == message


def test_name_before_the_stream(path: str, vmferry: Any) -> None:
    """Broken: the order of options and arguments would matter, or none would be no error."""
    assert vmferry.call("dump", "--devices", "c#1", path).stdout.startswith("c#1  ")
    assert "bare" in vmferry.call("dump", "--devices", path).stdout
    result = vmferry.call("dump", "--devices")
    assert result.exit_code == 2
    assert "Missing argument 'STREAM'" in result.stderr


def test_fields_as_json(path: str, vmferry: Any) -> None:
    """Broken: every program that reads device state would break."""
    start = make().index(PAYLOAD)
    found = json.loads(vmferry.call("dump", path, "--json", "--devices", "c#0").stdout)
    assert found["machine"] == "pc-q35-7.2"
    assert found["configuration"] is None
    (device,) = found["devices"]
    fields = device.pop("fields")
    assert device == {
        "name": "c",
        "section_id": 3,
        "instance_id": 0,
        "version": 2,
        "offset": start,
        "size": len(PAYLOAD),
    }
    state = {"name": "state", "type": "int8", "size": 1}
    port = {"type": "struct", "size": 1}
    extra = {"name": "extra", "type": "uint8", "offset": start + 28, "size": 1, "value": 7}
    at = [{"offset": start + place} for place in range(20)]
    assert fields == [
        {"name": "count", "type": "uint32", **at[0], "size": 4, "value": 42},
        {"name": "level", "type": "int16", **at[4], "size": 2, "value": -2},
        {"name": "on", "type": "bool", **at[6], "size": 1, "value": True},
        {"name": "regs", "type": "uint16", **at[7], "size": 6, "value": [1, 2, 3]},
        {"name": "port[0]", **port, **at[13], "fields": [{**state, **at[13], "value": 5}]},
        {"name": "port[1]", **port, **at[14], "fields": [{**state, **at[14], "value": -16}]},
        {"name": "next", "type": "nullptr", **at[15], "size": 1, "value": None},
        {"name": "clock", "type": "timer", **at[16], "size": 3, "value": "010203"},
        {"name": "c/x", "type": "subsection", **at[19], "size": 10, "fields": [extra]},
    ]


def test_all_as_json(path: str, vmferry: Any) -> None:
    """Broken: a device would be missing, or one that is not described be no bytes but an error."""
    found = json.loads(vmferry.call("dump", path, "--json", "--devices").stdout)
    assert [device["name"] for device in found["devices"]] == ["early", "c", "c", "bare"]
    (bare,) = found["devices"][3]["fields"]
    assert (bare["name"], bare["type"], bare["value"]) == ("data", "buffer", b"abc".hex())
    (configuration,) = found["configuration"]["fields"]
    assert (configuration["type"], configuration["offset"]) == ("undescribed", 9)
    without = json.loads(vmferry.call("dump", path, "--json").stdout)
    assert "configuration" not in without
    assert all("fields" not in device for device in without["devices"])


def test_configuration(vmferry: Any) -> None:
    """Broken: the configuration of newer streams could not be shown, field by field."""
    fields = [
        {"name": "len", "type": "uint32", "size": 4},
        {"name": "name", "type": "buffer", "size": 10},
    ]
    subsections = [
        {
            "vmsd_name": f"configuration/{name}",
            "version": 1,
            "fields": [{"name": "value", "type": "x", "size": size}],
        }
        for name, size in (("target-page-bits", 4), ("capabilities", 11), ("uuid", 16))
    ]
    described = {"version": 1, "fields": fields, "subsections": subsections}
    path = vmferry.write("stream", make((("configuration", described),)))
    result = vmferry.call("dump", path, "--devices", "configuration")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[1] == ["0x9-0xd", "len", "uint32", "0xa"]
    assert lines[4][1:] == ["value", "x", "00", "00", "00", "0c"]
    assert len(lines) == 9


def test_long_values_are_cut_for_people_only(vmferry: Any) -> None:
    """Broken: a large field would flood the terminal, or a program would get a part of it."""
    path = vmferry.write("stream", streams.SMALL)
    shown = vmferry.call("dump", path, "--devices", "cpu#0").stdout.splitlines()[1]
    assert shown.endswith("1d 1e 1f ...")
    found = json.loads(vmferry.call("dump", path, "--json", "--devices", "cpu#0").stdout)
    assert found["devices"][0]["fields"][0]["value"] == bytes(range(256)).hex() * 4


def test_device_unlike_its_description(vmferry: Any) -> None:
    """Broken: a wrong description would be a traceback, or show wrong fields."""
    data = make().replace(b'"nullptr"', b'"boolean"').replace(b'"int16"', b'"int32"')
    start = data.index(PAYLOAD)
    result = vmferry.call("dump", vmferry.write("stream", data), "--devices", "c#0")
    assert result.exit_code == 1
    message = f"offset {start:#x} (section 'c'): its description makes no sense: level: int32 of 4"
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
