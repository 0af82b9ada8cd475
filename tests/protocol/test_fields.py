"""Device state, decoded by descriptions."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import construct as c  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.devices.fields import Decoder, Field, Value, decode, leaves
from vmferry.protocol.errors import StreamError

from tests.streams import closing, description_of, opening, read, to_bytes

START = 0x1000
"""Offset of the payloads in the stream."""
SIZES = {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}


def plain(value: Value) -> Any:
    """Return a value in a form that can be compared."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def decoded(structure: Any, payload: bytes) -> dict[str, Any]:
    """Return the values of the fields that hold no others, by path."""
    found = decode(structure, payload, START, "device")
    return {path: plain(field.value) for path, field in leaves(found)}


def places(fields: tuple[Field, ...]) -> Iterator[tuple[int, int]]:
    """Return the start and end of each field that holds no others, counted from the payload's
    start.
    """
    for _, field in leaves(fields):
        yield field.offset - START, field.offset - START + field.size


def entry(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    """Return one of the `fields` of a structure."""
    return {"name": name, "type": kind, "size": size, **more}


# What has to come out for what went in, worked out without the code under test.


@dataclass
class Known:
    """A description's entries, their bytes, and the values by path."""

    fields: list[dict[str, Any]]
    payload: bytes
    values: dict[str, Any]


def read_number(kind: str, data: bytes) -> int | bool:
    """Return a number as QEMU writes it."""
    if kind == "bool":
        return data != b"\0"
    return int.from_bytes(data, "big", signed=not kind.startswith("u"))


@st.composite
def numbers(draw: st.DrawFn, name: str) -> Known:
    """Draw a number or boolean, or an array of them, in each form."""
    kind = draw(st.sampled_from([*SIZES, "bool"]))
    size = SIZES.get(kind, 1)
    form = draw(st.sampled_from(["one", "array_len", "index"]))
    count = 1 if form == "one" else draw(st.integers(0 if form == "array_len" else 2, 5))
    pieces = [draw(st.binary(min_size=size, max_size=size)) for _ in range(count)]
    values = [read_number(kind, piece) for piece in pieces]
    tail = draw(st.sampled_from(["", " equal", " le"]))
    one = entry(name, kind + tail, size)
    if form == "one":
        return Known([one], pieces[0], {name: values[0]})
    if form == "array_len":
        return Known([{**one, "array_len": count}], b"".join(pieces), {name: values})
    listed = [{**one, "index": index} for index in range(count)]
    return Known(listed, b"".join(pieces), {f"{name}[{i}]": v for i, v in enumerate(values)})


@st.composite
def others(draw: st.DrawFn, name: str) -> Known:
    """Draw bytes of a type that only QEMU knows, a capability, or pointers."""
    kind = draw(st.sampled_from(["timer", "qtailq", "unused_buffer", "capability", "nullptr"]))
    if kind == "nullptr":
        return Known([entry(name, kind, 1)], b"0", {name: None})
    if kind == "capability":
        names = draw(st.lists(st.text("a-z", max_size=9), min_size=1, max_size=3))
        payload = b"".join(bytes([len(text)]) + text.encode() for text in names)
        described = entry(name, kind, 1 + len(names[0]), array_len=len(names))
        return Known([described], payload, {f"{name}[{i}]": text for i, text in enumerate(names)})
    data = draw(st.binary(max_size=9))
    return Known([entry(name, kind, len(data))], data, {name: data})


def inside(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a structure, by their paths from outside it."""
    return {f"{name}/{path}": value for path, value in values.items()}


def structures(name: str) -> st.SearchStrategy[Known]:
    """Draw a structure, in each of the ways to describe one."""

    def within(known: Known, form: str) -> Known:
        body = {"vmsd_name": "x", "version": 1, "fields": known.fields}
        size = len(known.payload)
        if form in ("tmp", "vstruct"):
            return Known(
                [entry(name, form, size, **body)], known.payload, inside(name, known.values)
            )
        one = entry(name, "struct", size, struct=body)
        if form == "one":
            return Known([one], known.payload, inside(name, known.values))
        # Elements of one array differ in their values, never mind: their places differ.
        count = 2 + size % 3
        values = {
            path: value
            for index in range(count)
            for path, value in inside(f"{name}[{index}]", known.values).items()
        }
        payload = known.payload * count
        if form == "index" or size == 0:
            return Known([{**one, "index": index} for index in range(count)], payload, values)
        return Known([{**one, "array_len": count}], payload, values)

    forms = st.sampled_from(["one", "array_len", "index", "tmp", "vstruct"])
    return st.builds(within, st.deferred(listings), forms)


@st.composite
def listings(draw: st.DrawFn) -> Known:
    """Draw all fields of a structure."""
    whole = Known([], b"", {})
    for number in range(draw(st.integers(0, 4))):
        makers = st.sampled_from([numbers, numbers, others, structures])
        known = draw(draw(makers)(f"f{number}"))
        whole.fields += known.fields
        whole.payload += known.payload
        whole.values |= known.values
    return whole


@st.composite
def devices(draw: st.DrawFn) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """Draw a device with subsections: its description, payload, and values by path."""
    known = draw(listings())
    payload, values = known.payload, known.values
    subsections = []
    for number in range(draw(st.integers(0, 2))):
        name, below = f"device/{number}", draw(listings())
        subsections.append({"vmsd_name": name, "version": 7, "fields": below.fields})
        payload += b"\5" + bytes([len(name)]) + name.encode() + b"\0\0\0\7" + below.payload
        values |= inside(name, below.values)
    return {"fields": known.fields, "subsections": subsections}, payload, values


@given(devices())
def test_decodes_what_was_encoded(device: tuple[dict[str, Any], bytes, dict[str, Any]]) -> None:
    """Broken: a device's field would be shown with the value of another, or none of its own."""
    structure, payload, values = device
    assert decoded(structure, payload) == values
    found = decode(structure, payload, START, "device")
    # What no field has is the headers of subsections.
    covered = sum(end - start for start, end in places(found))
    headers = sum(6 + len(s["vmsd_name"]) for s in structure["subsections"])
    assert covered + headers == len(payload)
    assert sorted(places(found)) == list(places(found))


HOSTILE: list[Any] = [None, -1, 0, 10**12, 1 << 31, 10**400, 1.5, True, "x", [], {}, [[]], [{}]]


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a JSON value: its container, and its key or index."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _nodes(value[key])


@given(devices(), st.data())
def test_damage_is_refused_or_decoded(
    device: tuple[dict[str, Any], bytes, dict[str, Any]], data: st.DataObject
) -> None:
    """Broken: a wrong description or payload would end in a traceback, or hang."""
    structure, payload, _ = copy.deepcopy(device)
    for _ in range(data.draw(st.integers(0, 3))):
        # There is something to damage, whatever was taken away.
        structure.setdefault("fields", [])
        holder, key = data.draw(st.sampled_from(list(_nodes(structure))))
        if data.draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(data.draw(st.sampled_from(HOSTILE)))
    cut = data.draw(st.integers(0, len(payload)))
    payload = payload[:cut] + data.draw(st.binary(max_size=3)) + payload[cut:]
    error, found = _outcome(structure, payload)
    if error is not None:
        assert error.section == "device"
        assert START <= error.offset <= START + len(payload)
        assert str(error).isprintable()
        assert len(str(error)) < 1200
    assert all(0 <= start <= end <= len(payload) for start, end in places(found))


def _outcome(structure: Any, payload: bytes) -> tuple[StreamError | None, tuple[Field, ...]]:
    try:
        return None, decode(structure, payload, START, "device")
    except StreamError as error:
        return error, ()


@pytest.mark.parametrize("kind", [*SIZES, "bool"])
def test_arrays_are_as_declared(kind: str) -> None:
    """Broken: the fast path for arrays would give other numbers than one at a time."""
    data = np.random.default_rng(4).integers(0, 256, 800, np.uint8).tobytes()
    size = SIZES.get(kind, 1)
    count = len(data) // size
    declared = c.Flag if kind == "bool" else c.BytesInteger(size, signed=kind[0] == "i")
    found = decoded({"fields": [entry("a", kind, size, array_len=count)]}, data)
    assert found == {"a": list(c.Array(count, declared).parse(data))}


STRUCT = {"vmsd_name": "s", "version": 1, "fields": [entry("a", "uint8", 1)]}


@pytest.mark.parametrize(
    ("fields", "payload", "values"),
    [
        # Elements listed one by one: they, or what is in them, may be there or not.
        (
            [
                entry("s", "struct", 1, index=0, struct=STRUCT),
                entry("s", "struct", 0, index=1, struct={**STRUCT, "fields": []}),
                entry("s", "struct", 1, index=2, struct=STRUCT),
            ],
            b"\1\3",
            {"s[0]/a": 1, "s[2]/a": 3},
        ),
        # One entry for all elements.
        (
            [entry("s", "struct", 1, array_len=2, struct=STRUCT)],
            b"\1\2",
            {"s[0]/a": 1, "s[1]/a": 2},
        ),
        # QEMU 10: null pointers part an array into several, and one alone looks like no array.
        (
            [
                entry("p", "nullptr", 1),
                entry("p", "struct", 1, array_len=2, struct=STRUCT),
                entry("p", "nullptr", 1, array_len=3),
                entry("p", "struct", 1, struct=STRUCT),
            ],
            b"0\1\x02000\3",
            {
                **dict.fromkeys(["p[0]", "p[3]", "p[4]", "p[5]"]),
                "p[1]/a": 1,
                "p[2]/a": 2,
                "p[6]/a": 3,
            },
        ),
        (
            [entry("p", "uint16", 2, array_len=2), entry("p", "nullptr", 1)],
            b"\0\1\0\x020",
            {"p[0]": 1, "p[1]": 2, "p[2]": None},
        ),
        # Before QEMU 10: only null pointers, told by a structure of nothing.
        (
            [entry("p", "struct", 1, array_len=3, struct={})],
            b"000",
            dict.fromkeys(["p[0]", "p[1]", "p[2]"]),
        ),
        # A name that a device has twice is numbered by QEMU itself.
        ([entry("n[0]", "int8", 1), entry("n[1]", "int8", 1)], b"\xff\1", {"n[0]": -1, "n[1]": 1}),
        # A list of structures lists the fields of its last element, and only its bytes are sure.
        (
            [entry("q", "qtailq", 5, vmsd_name="s", version=1, fields=STRUCT["fields"])],
            b"\1\7\1\x08\0",
            {"q": b"\1\7\1\x08\0"},
        ),
    ],
)
def test_forms(fields: list[dict[str, Any]], payload: bytes, values: dict[str, Any]) -> None:
    """Broken: the descriptions of some versions of QEMU would be misread."""
    assert decoded({"fields": fields}, payload) == values


def test_elements_without_bytes() -> None:
    """Broken: a few bytes of description would make any number of fields, or be refused."""
    fields = [entry("s", "struct", 0, struct={"fields": []}, array_len=10**9)]
    fields += [entry("t", "timer", 0, array_len=10**9), entry("a", "uint8", 1)]
    found = decode({"fields": fields}, b"\7", START, "device")
    assert [(field.name, field.size, field.value) for field in found] == [
        *[("s", 0, ()), ("t", 0, b""), ("a", 1, 7)]
    ]


def test_device_of_the_old_style() -> None:
    """Broken: devices that QEMU saves by a function of their own could not be shown."""
    structure = {"size": 3, "fields": [entry("data", "buffer", 3)]}
    assert decoded(structure, b"abc") == {"data": b"abc"}


def _nested(levels: int) -> dict[str, Any]:
    structure: dict[str, Any] = {"fields": [entry("a", "uint8", 1)]}
    for _ in range(levels):
        structure = {"fields": [entry("s", "struct", 1, struct=structure)]}
    return structure


def _multiplied(levels: int) -> dict[str, Any]:
    structure: dict[str, Any] = {"fields": [entry("a", "uint8", 1)]}
    for level in range(levels):
        inner = entry("s", "struct", 100**level, struct=structure, array_len=100)
        structure = {"fields": [inner]}
    return structure


def _sections_in_each_other(levels: int) -> dict[str, Any]:
    structure: dict[str, Any] = {"vmsd_name": "s", "version": 1}
    for _ in range(levels):
        structure = {"vmsd_name": "s", "version": 1, "subsections": [structure]}
    return structure


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"fields": [entry("a", "uint8", 1, array_len=10**12)]}, "array_len"),
        ({"fields": [entry("a", "uint8", 1, array_len=1 << 31)]}, "has 4 bytes"),
        ({"fields": [entry("a", "buffer", 1, array_len=1 << 31)]}, "fields"),
        ({"fields": [entry("a", "capability", 1, array_len=1 << 31)]}, "fields"),
        ({"fields": [entry("a", "buffer", -4)]}, "size"),
        ({"fields": [entry("a", "buffer", (1 << 32) - 1)]}, "has 4 bytes"),
        ({"fields": [entry("a", "uint32", 8)]}, "uint32 of 4 bytes, its size says 8"),
        (
            {"fields": [entry("a", "struct", 2, struct=STRUCT)]},
            "struct of 1 bytes, its size says 2",
        ),
        ({"fields": [entry("a", "uint16", 2)]}, "the section has 4 bytes, its description 2"),
        ({"fields": [entry("a", "uint64", 8)]}, "the section has 4 bytes, its description 8"),
        ({"fields": [entry("a", "nullptr", 1, array_len=4)]}, r"'a\[0\]' \(nullptr\) is not as"),
        ({"fields": [entry("a", "capability", 2, array_len=3)]}, r"'a\[1\]' \(capability\)"),
        ({"subsections": [{"vmsd_name": "s", "version": 1}]}, "the section has 4 bytes"),
        (_nested(900), "structures in each other"),
        (_multiplied(4), "fields"),
        (_sections_in_each_other(900), "in each other"),
        ({"fields": [entry("a", "int8", 0, index=0)] * 400_000}, "fields|size"),
        ({"fields": [entry("a", "timer", 0, index=0)] * 400_000}, "fields"),
        ([], "no object"),
    ],
)
def test_hostile_descriptions(structure: Any, message: str) -> None:
    """Broken: a few bytes of description would take all memory, or an hour, or be a traceback."""
    started = time.monotonic()
    with pytest.raises(StreamError, match=message) as raised:
        decode(structure, b"\x01abc", START, "device")
    assert time.monotonic() - started < 10
    assert raised.value.section == "device"
    assert START <= raised.value.offset < START + 4


def test_another_subsection() -> None:
    """Broken: a subsection would be taken for another one."""
    structure = {"subsections": [{"vmsd_name": "d/a", "version": 1}]}
    assert decode(structure, b"\5\3d/a\0\0\0\1", START, "device")[0].name == "d/a"
    for payload in (b"\5\3d/b\0\0\0\1", b"\5\3d/a\0\0\0\2", b"\4\3d/a\0\0\0\1"):
        with pytest.raises(StreamError, match="'d/a' \\(subsection\\)"):
            decode(structure, payload, START, "device")


def test_devices_of_a_stream() -> None:
    """Broken: a device would be shown by the description of another, or places be wrong."""
    stream = to_bytes([*opening(), *closing(early=())])
    found = read(stream)
    (description,) = [event for event in found if isinstance(event, events.Description)]
    decoder = Decoder(description)
    for section in [event for event in found if isinstance(event, events.DeviceSection)]:
        (field,) = decoder.decode(section)
        known = section.name != "early"
        assert (field.name, field.type) == (
            ("data", "buffer") if known else ("payload", "undescribed")
        )
        assert stream[field.offset : field.offset + field.size] == section.payload == field.value


def test_configuration() -> None:
    """Broken: the configuration of newer streams would not be decoded to its last byte."""
    configuration = events.Configuration(8, "pc", 4096, ("events", "xbzrle"))
    target = {"vmsd_name": "configuration/target-page-bits", "version": 1}
    capabilities = {"vmsd_name": "configuration/capabilities", "version": 1}
    described = {
        "fields": [entry("len", "uint32", 4), entry("name", "buffer", 2)],
        "subsections": [
            {**target, "fields": [entry("target_page_bits", "uint32", 4)]},
            {
                **capabilities,
                "fields": [
                    entry("caps_count", "uint32", 4),
                    entry("capabilities", "capability", 7, array_len=2),
                ],
            },
        ],
    }
    value = {"devices": [], "configuration": described}
    description = description_of(value)
    found = Decoder(description).decode_configuration(configuration)
    assert {path: field.value for path, field in leaves(found)} == {
        "len": 2,
        "name": b"pc",
        "configuration/target-page-bits/target_page_bits": 12,
        "configuration/capabilities/caps_count": 2,
        "configuration/capabilities/capabilities[0]": "events",
        "configuration/capabilities/capabilities[1]": "xbzrle",
    }
    assert found[0].offset == 9
    (plain_bytes,) = Decoder(None).decode_configuration(configuration)
    assert (plain_bytes.type, plain_bytes.offset) == ("undescribed", 9)


def test_an_array_told_by_its_null_pointer() -> None:
    """Broken: devices of QEMU before 10.0 would be called wrong, where an array of pointers is told
    by its first one, which leads nowhere."""
    array = {"name": "css", "type": "struct", "struct": {}, "size": 1, "array_len": 4}
    structure = {"name": "d", "instance_id": 0, "fields": [array]}
    (found,) = decode(structure, b"00\1\2\3" + b"0", 7, "d")
    assert (found.type, found.offset, found.value) == ("undescribed", 7, b"00\1\2\0030")
    assert [field.value for field in decode(structure, b"0000", 7, "d")] == [None] * 4
    with pytest.raises(StreamError):
        decode({**structure, "fields": [{**array, "array_len": 1}]}, b"9", 7, "d")
