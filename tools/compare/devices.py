"""Finds the devices that differ between two streams, and the fields in which they differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from ...protocol.devices.fields import Decoder, Field, Value, leaves
from ...protocol.errors import StreamError
from ..dump.devices import (
    CONFIGURATION,
    MOST_LETTERS,
    format_numbers,
    format_value,
    text_of,
    value_as_json,
)
from ..rebuild.guest import RebuiltGuest
from .memory import ONLY_A, ONLY_B, names_of_both

MOST_ELEMENTS = 16
"""The most differing elements of an array that are listed one by one; otherwise it is one field."""
MOST_FIELDS = 10_000
"""The most fields of a device that are listed; all of them are counted."""

_PRINTABLE = re.compile(rb"[ -~]+")
_PRINTABLE_END = re.compile(rb"[ -~]+\Z")

FieldPair: TypeAlias = "tuple[str, Field | None, Field | None]"
"""A path and the field that each stream has there."""


@dataclass(frozen=True)
class DeviceDifference:
    """A device that only one stream has (the other version is None), or that differs in version or
    fields.

    `count` is the number of fields that differ; `fields` has the first of them, None where a stream
    has no such field.
    """

    name: str
    instance_id: int
    versions: tuple[int | None, int | None]
    count: int = 0
    fields: list[FieldPair] = field(default_factory=list)

    def describe(self) -> Iterator[str]:
        """Yield a line for the device, then one for each field."""
        one, other = self.versions
        name = f"{self.name}#{self.instance_id}"
        if one is None or other is None:
            yield f"{name}: {ONLY_A if other is None else ONLY_B}"
            return
        versions = "" if one == other else f", version {one} in the first, {other} in the second"
        differ = "field differs" if self.count == 1 else "fields differ"
        yield f"{name}: {self.count} {differ}{versions}"
        for path, mine, yours in self.fields:
            yield f"  {path}: {_describe_values(mine, yours)}"
        if self.count > len(self.fields):
            yield "  ..."

    def as_json(self) -> dict[str, Any]:
        """Return the difference as a dictionary for JSON.

        Keys: device, instance_id, versions (of both, None if missing), differing_fields (their
        number), fields (the first of them). Each field has the keys path, type, and a and b: the
        values in the format of `dump --json`, omitted if there is no such field.
        """
        fields: list[dict[str, Any]] = []
        for path, mine, yours in self.fields:
            sides = {key: side for key, side in (("a", mine), ("b", yours)) if side is not None}
            kind = " / ".join(dict.fromkeys(side.type for side in sides.values()))
            values = {key: value_as_json(side) for key, side in sides.items()}
            fields.append({"path": path, "type": kind, **values})
        return {
            "device": self.name,
            "instance_id": self.instance_id,
            "versions": list(self.versions),
            "differing_fields": self.count,
            "fields": fields,
        }


def _describe_values(one: Field | None, other: Field | None) -> str:
    if one is None or other is None:
        values = "".join(format_value(side) for side in (one, other) if side is not None)
        return f"{values} ({ONLY_A if other is None else ONLY_B})"
    start = _first_unequal(one.value, other.value)
    if not start or (start < MOST_LETTERS and _are_texts(one.value, other.value)):
        return f"{format_value(one)} / {format_value(other)}"
    words = _words_around(one.value, other.value, start)
    if words is not None:
        return " / ".join(map(repr, words))
    shown = " / ".join(format_numbers(_behind(side, start)) for side in (one, other))
    return f"from {start:#x} on {shown}"


def _words_around(one: Value, other: Value, place: int) -> tuple[str, str] | None:
    """Return the printable bytes around an offset in both byte strings, or None unless both are
    text.
    """
    if not (isinstance(one, bytes) and isinstance(other, bytes)):
        return None
    found = []
    for side in (one, other):
        before = _PRINTABLE_END.search(side, max(0, place - MOST_LETTERS), place)
        behind = _PRINTABLE.match(side, place, place + MOST_LETTERS)
        if behind is None:
            return None
        found.append((before[0] if before else b"") + behind[0])
    texts = [text_of(side) for side in found]
    return None if texts[0] is None or texts[1] is None else (texts[0], texts[1])


def _are_texts(one: Value, other: Value) -> bool:
    return text_of(one) is not None and text_of(other) is not None


def _behind(side: Field, start: int) -> Field:
    """Return the field without its first elements or bytes."""
    assert isinstance(side.value, (bytes, np.ndarray))
    return replace(side, value=side.value[start:])


def _first_unequal(one: Value, other: Value) -> int:
    """Return the index of the first difference of two arrays or byte strings, or 0 for other
    values.
    """
    if isinstance(one, bytes) and isinstance(other, bytes):
        one, other = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return 0
    common = min(len(one), len(other))
    unequal = np.flatnonzero(one[:common] != other[:common])
    return int(unequal[0]) if len(unequal) else common


def compare_devices(one: RebuiltGuest, other: RebuiltGuest) -> Iterator[DeviceDifference]:
    """Yield the devices that differ.

    A device that cannot be decoded, or is described in only one stream, is compared as bytes.
    """
    sides = _parts(one), _parts(other)
    decoders = Decoder(one.description), Decoder(other.description)
    for key in names_of_both(*sides):
        a, b = (side.get(key) for side in sides)
        versions = (None if a is None else a.version, None if b is None else b.version)
        found = DeviceDifference(*key, versions)
        if a is not None and b is not None:
            fields = _compare_parts((a, b), decoders)
            first = list(islice(fields, MOST_FIELDS))
            found = replace(found, fields=first, count=len(first) + sum(1 for _ in fields))
        if found.count or found.versions[0] != found.versions[1]:
            yield found


@dataclass(frozen=True)
class _Part:
    """A device, or the configuration, as a part to compare."""

    version: int
    decode: Callable[[Decoder], tuple[Field, ...]]


def _parts(guest: RebuiltGuest) -> dict[tuple[str, int], _Part]:
    parts = {}
    configuration = guest.configuration
    if configuration is not None:
        decode = partial(Decoder.decode_configuration, configuration=configuration)
        parts[CONFIGURATION, 0] = _Part(0, decode)
    for section in guest.devices:
        decode = partial(Decoder.decode, section=section)
        parts[section.name, section.instance_id] = _Part(section.version, decode)
    return parts


def _compare_parts(
    parts: tuple[_Part, _Part], decoders: tuple[Decoder, Decoder]
) -> Iterator[FieldPair]:
    one, other = _decode_both(parts, decoders)
    for path in names_of_both(one, other):
        yield from _compare_field(path, one.get(path), other.get(path))


def _decode_both(
    parts: tuple[_Part, _Part], decoders: tuple[Decoder, Decoder]
) -> list[dict[str, Field]]:
    """Return the fields of both parts by path, or their bytes if either part cannot be decoded."""
    try:
        found = [part.decode(decoder) for part, decoder in zip(parts, decoders, strict=True)]
    except StreamError:
        found = []
    if any(field.type == "undescribed" for fields in found for field in fields) or not found:
        found = [part.decode(Decoder(None)) for part in parts]
    return [dict(leaves(fields)) for fields in found]


def _compare_field(path: str, one: Field | None, other: Field | None) -> Iterator[FieldPair]:
    a, b = one and one.value, other and other.value
    if one is None or other is None or type(a) is not type(b):
        yield path, one, other
    elif not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        if a != b:
            yield path, one, other
    elif len(a) != len(b) or _are_texts(a, b):
        yield path, one, other
    else:
        unequal = np.flatnonzero(a != b)
        if len(unequal) > MOST_ELEMENTS:
            yield path, one, other
            return
        for index in unequal.tolist():
            sides = (replace(one, value=a[index].item()), replace(other, value=b[index].item()))
            yield f"{path}[{index}]", *sides
