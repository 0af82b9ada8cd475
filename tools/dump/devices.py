"""Formats device state for `dump`: each field with its offset in the stream, its type and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ...protocol import events
from ...protocol.devices.fields import Decoder, Field, Value
from ..console.failure import CommandError
from ..console.text import echo
from .overview import print_table
from .pieces import WithDevices, device_of

CONFIGURATION = "configuration"
"""The name that selects the configuration, in place of a device."""
MOST_BYTES = 32
MOST_NUMBERS = 16
MOST_LETTERS = 80
"""The most characters of a text that are printed; the constants above limit bytes and numbers."""
FEWEST_LETTERS = 4
"""The fewest printable bytes that are taken as a text; fewer are often printable by chance."""


class NoDeviceError(CommandError):
    """Raised if the stream has no device with the given name; the message is one line."""


def print_devices(summary: WithDevices, name: str) -> None:
    """Print all fields of the devices with the name NAME or NAME#INSTANCE.

    Raises NoDeviceError, and StreamError if a device does not match its description.
    """
    sections, configuration = _choose(summary, name)
    decoder = Decoder(summary.described)
    if configuration is not None:
        fields = decoder.decode_configuration(configuration)
        echo(f"{CONFIGURATION}  {sum(field.size for field in fields)} bytes")
        print_table([*_rows(fields)])
    for section in sections:
        what = f"section {section.section_id}, version {section.version}"
        size = f"{len(section.payload)} bytes"
        echo(f"{section.name}#{section.instance_id}  {what}, {size}")
        print_table([*_rows(decoder.decode(section))])


def _choose(
    summary: WithDevices, name: str
) -> tuple[list[events.DeviceSection], events.Configuration | None]:
    """Return the devices with this name (all if it is empty), and the configuration if it is
    selected.

    A name may leave out the path of the device: of several devices, all are chosen.
    """
    configuration = summary.configuration if name in ("", CONFIGURATION) else None
    known = summary.sections_of_devices
    chosen = [d for d in known if name in ("", d.name, f"{d.name}#{d.instance_id}")]
    if not chosen:
        short = [(d, d.name.rpartition("/")[2]) for d in known]
        chosen = [d for d, last in short if name in (last, f"{last}#{d.instance_id}")]
    if name and not chosen and configuration is None:
        raise NoDeviceError(f"no device {name!r} in the stream (--devices lists them)")
    return chosen, configuration


def _rows(fields: Iterable[Field], depth: int = 0) -> Iterator[tuple[str, ...]]:
    for field in fields:
        place = f"{field.offset:#x}-{field.offset + field.size:#x}"
        count = f"[{len(field.value)}]" if isinstance(field.value, np.ndarray) else ""
        nested = isinstance(field.value, tuple)
        value = "" if nested else format_value(field)
        yield place, "  " * depth + field.name, field.type + count, value
        if isinstance(field.value, tuple):
            yield from _rows(field.value, depth + 1)


def text_of(value: Value) -> str | None:
    """Return the text in bytes or an array of bytes, without trailing NULs, or None if it is not
    text.
    """
    if isinstance(value, np.ndarray):
        value = value.tobytes() if value.dtype.itemsize == 1 and value.dtype != np.bool_ else None
    if not isinstance(value, bytes):
        return None
    raw = value.rstrip(b"\0")
    if len(raw) < FEWEST_LETTERS or not all(0x20 <= byte < 0x7F for byte in raw):
        return None
    return raw.decode()


def format_value(field: Field) -> str:
    """Return the value on one line, truncated if it is long: as text if it is one, else as numbers.

    `format_numbers` has the format of numbers.
    """
    text = text_of(field.value)
    if text is None:
        return format_numbers(field)
    return repr(text[:MOST_LETTERS]) + (" ..." if len(text) > MOST_LETTERS else "")


def format_numbers(field: Field) -> str:
    """Return the value on one line, truncated if it is long: unsigned numbers and bytes in
    hexadecimal.
    """
    value = field.value
    if isinstance(value, np.ndarray):
        numbers = [_format_number(number, field.type) for number in value[:MOST_NUMBERS].tolist()]
        return " ".join([*numbers, "..."] if len(value) > MOST_NUMBERS else numbers)
    if isinstance(value, bytes):
        return value[:MOST_BYTES].hex(" ") + (" ..." if len(value) > MOST_BYTES else "")
    if isinstance(value, int):
        return _format_number(value, field.type)
    return "null" if value is None else str(value)


def _format_number(value: int, kind: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:#x}" if kind.startswith("u") else str(value)


def devices_as_json(summary: WithDevices, name: str = "") -> dict[str, Any]:
    """Return the devices with the name NAME or NAME#INSTANCE (all if it is empty), with their
    fields.

    The keys are devices, each with the keys of Device and `fields`; and configuration, None if it
    is not selected or missing, with `offset`, `size` and `fields`. A field has `name`, `type`,
    `offset` (in the stream), `size` (bytes) and either `value` or, for a structure or a subsection,
    `fields`. A value is a number, true, false, a list of these, or None for a null pointer; for
    type `capability`, its name; for any other type, its bytes in hexadecimal. State that the stream
    does not describe is one field of type `undescribed`.

    Raises NoDeviceError, and StreamError if a device does not match its description.
    """
    sections, configuration = _choose(summary, name)
    decoder = Decoder(summary.described)
    found: dict[str, Any] = {CONFIGURATION: None}
    if configuration is not None:
        fields = decoder.decode_configuration(configuration)
        size = sum(field.size for field in fields)
        listed = [_field_as_json(field) for field in fields]
        found[CONFIGURATION] = {"offset": fields[0].offset, "size": size, "fields": listed}
    found["devices"] = [
        {
            **device_of(section)._asdict(),
            "fields": [_field_as_json(field) for field in decoder.decode(section)],
        }
        for section in sections
    ]
    return found


def _field_as_json(field: Field) -> dict[str, Any]:
    known = {"name": field.name, "type": field.type, "offset": field.offset, "size": field.size}
    if isinstance(field.value, tuple):
        return {**known, "fields": [_field_as_json(inner) for inner in field.value]}
    return {**known, "value": value_as_json(field)}


def value_as_json(field: Field) -> Any:
    """Return the value of a field without inner fields, in the format of `devices_as_json`."""
    value = field.value
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.hex() if isinstance(value, bytes) else value
