"""Parse the state of devices field by field, as the stream's description lists it.

The description of a device becomes a construct declaration, which parses the device's payload.
Integers are big-endian. The description lists an array as one entry for each element, or as one for
all (see `description`); entries of both kinds may share a name if null pointers are between the
elements. The value of a field of unknown type is its bytes.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import construct as c  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from .. import events
from ..errors import StreamError
from ..wire import stream
from ..wire.configuration import build_configuration
from ..wire.kept import LARGE, Payload, opened, whole
from ..wire.stream import Str8
from .description import (
    MAX_DEPTH,
    DescriptionError,
    Entry,
    Structure,
    devices_of,
    extent,
    fields_of,
    number,
    subsection_ids,
    subsections_of,
    text,
)

MAX_FIELDS = 1 << 18
"""Limit for the fields of one device; an array of numbers is one field."""

Value: TypeAlias = "int | bool | str | bytes | npt.NDArray[Any] | tuple[Field, ...] | None"


@dataclass(frozen=True, eq=False, slots=True)
class Field:
    """One field of a device in the stream.

    `type`: as described, or `subsection`, or `undescribed`. `offset`: in the stream; `size`: bytes.
    `value`: a number or boolean, or an array (n,) of them; None for a null pointer; the fields of a
    structure or subsection; a capability's name; the bytes of any other type.
    """

    name: str
    type: str
    offset: int
    size: int
    value: Value


_SCALARS: dict[str, c.Construct] = {
    "bool": c.Flag,
    "int8": c.Int8sb,
    "int16": c.Int16sb,
    "int32": c.Int32sb,
    "int64": c.Int64sb,
    "uint8": c.Int8ub,
    "uint16": c.Int16ub,
    "uint32": c.Int32ub,
    "uint64": c.Int64ub,
}
_NULL_POINTER = c.Mapping(c.Int8ub, {None: ord("0")})
"""Mark in the payload for a null pointer in an array."""
_CAPABILITY = c.ExprAdapter(Str8, lambda name, _: name.decode(errors="replace"), None)
_INLINE = ("vstruct", "tmp")
"""Types of structures whose fields are in their own entry.

The same is true of lists and trees of structures, but their entry describes one element only: their
value is bytes.
"""


@dataclass(frozen=True)
class _Declared:
    """The declaration of a value.

    `size`: its bytes, or, if not `fixed`, the minimum; `fields`: how many fields it makes.
    """

    construct: c.Construct
    size: int
    fields: int = 1
    fixed: bool = True


class _Placed(c.Subconstruct):  # type: ignore[misc]
    """Construct that wraps a value of the payload in a Field.

    `first`: the number of an array's first element.
    """

    def __init__(self, value: c.Construct, name: str, kind: str, first: int | None = None) -> None:
        super().__init__(value)
        self._name = name
        self._kind = kind
        self._first = first

    def _parse(self, payload: io.BytesIO, context: Any, path: str) -> Field:
        start, name = payload.tell(), self._name
        if self._first is not None:
            name = f"{name}[{self._first + context._index}]"
        offset = context._params.offset + start
        try:
            value = self.subcon._parsereport(payload, context, path)
        except c.ConstructError:
            message = f"field {name!r} ({self._kind}) is not as described"
            raise StreamError(message, offset=offset) from None
        return Field(name, self._kind, offset, payload.tell() - start, value)


class _Bytes(c.Bytes):  # type: ignore[misc]
    """Bytes of an unknown type; large ones are skipped if values are not wanted."""

    def _parse(self, payload: io.BufferedIOBase, context: Any, path: str) -> bytes:
        if context._params.wanted or self.length <= LARGE:
            return cast(bytes, super()._parse(payload, context, path))
        end = payload.tell() + self.length
        if end > payload.seek(0, io.SEEK_END):
            raise c.StreamError("too few bytes", path=path)
        payload.seek(end)
        return b""


def _declare_structure(structure: Structure, depth: int = 0) -> _Declared:
    """Return the declaration of a structure's fields and subsections, as a tuple of Field.

    Raises DescriptionError.
    """
    if depth > MAX_DEPTH:
        raise DescriptionError(f"more than {MAX_DEPTH} structures in each other")
    parts, fields = [], 0
    for part in _declare_parts(structure, depth):
        parts.append(part)
        fields += part.fields
        _check_count(fields)
    whole = c.ExprAdapter(c.Sequence(*(part.construct for part in parts)), _flat, None)
    size, fixed = sum(part.size for part in parts), all(part.fixed for part in parts)
    return _Declared(whole, size, fields + 1, fixed)


def _check_count(fields: int) -> None:
    if fields > MAX_FIELDS:
        raise DescriptionError(f"more than {MAX_FIELDS} fields")


def _declare_parts(structure: Structure, depth: int) -> Iterator[_Declared]:
    listed = fields_of(structure)
    _check_count(len(listed))
    names = Counter(text(entry, "name") for entry in listed)
    before: Counter[str] = Counter()
    for entry in listed:
        name = text(entry, "name")
        yield _declare_entry(entry, depth, before[name], names[name] > 1)
        before[name] += number(entry, "array_len", 1)
    for subsection in subsections_of(structure):
        yield _declare_subsection(subsection, depth)


def _flat(found: list[Any], _: object) -> tuple[Field, ...]:
    return tuple(field for part in found for field in (part if isinstance(part, list) else (part,)))


def _declare_entry(entry: Entry, depth: int, first: int, repeated: bool) -> _Declared:
    """Return the declaration of the fields of one entry.

    `first`: number of earlier elements with its name.
    """
    name, kind = text(entry, "name"), text(entry, "type")
    count, size = extent(entry)
    try:
        element = _declare_value(entry, base_type(kind), size, depth)
    except DescriptionError as error:
        raise DescriptionError(_at(name, error)) from None
    if element.fixed and element.size != size:
        raise DescriptionError(f"{name}: {kind} of {element.size} bytes, its size says {size}")
    # Elements without bytes could be any number, so they count as one.
    if "array_len" not in entry or element.size == 0:
        if repeated or "index" in entry:
            name = f"{name}[{first}]"
        return replace(element, construct=_Placed(element.construct, name, kind))
    if base_type(kind) in _SCALARS and not repeated:
        return _Declared(_Placed(_numbers(base_type(kind), count), name, kind), count * size)
    # The caller compares the size with the payload's before it parses that many elements.
    array = c.Array(count, _Placed(element.construct, name, kind, first))
    fields = max(count, 1) * element.fields
    return _Declared(array, count * element.size, fields, element.fixed)


def base_type(kind: str) -> str:
    """Return a type without its condition for the destination: ` equal`, or ` le` (not greater)."""
    return kind.removesuffix(" equal").removesuffix(" le")


def _at(name: str, error: DescriptionError) -> str:
    """Return the message with the names of the enclosing structures, if they fit one line."""
    message = str(error)
    return message if len(message) > 500 else f"{name}/{message}"


def _declare_value(entry: Entry, kind: str, size: int, depth: int) -> _Declared:
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        return _Declared(scalar, scalar.sizeof())
    if kind == "nullptr":
        return _Declared(_NULL_POINTER, 1)
    if kind == "capability":
        return _Declared(_CAPABILITY, 1, fixed=False)
    structure = entry if kind in _INLINE else entry.get("struct")
    if structure is None:
        return _Declared(_Bytes(size), size)
    if not isinstance(structure, dict):
        raise DescriptionError("struct is no object")
    if not structure and size == 1:
        # QEMU before 10.0 describes a null pointer like this.
        return _Declared(_NULL_POINTER, 1)
    return _declare_structure(structure, depth + 1)


def _numbers(kind: str, count: int) -> c.Construct:
    """Return a declaration like c.Array(count, scalar), but without a Python step per element."""
    dtype = np.dtype("u1" if kind == "bool" else kind).newbyteorder(">")

    def view(data: bytes, _: object) -> npt.NDArray[Any]:
        values = np.frombuffer(data, dtype)
        return values != 0 if kind == "bool" else values

    return c.ExprAdapter(c.Bytes(count * dtype.itemsize), view, None)


def _declare_subsection(subsection: Structure, depth: int) -> _Declared:
    name, version = subsection_ids(subsection)
    header = stream.SubsectionHeader.build({"name": name, "version": version})
    inside = _declare_structure(subsection, depth + 1)
    behind_header = c.FocusedSeq("fields", c.Const(header), "fields" / inside.construct)
    placed = _Placed(behind_header, text(subsection, "vmsd_name"), "subsection")
    return replace(inside, construct=placed, size=len(header) + inside.size)


class Decoder:
    """Decoder for the devices of one stream, by its `description` (None if it has none)."""

    def __init__(self, description: events.Description | None) -> None:
        self._json = {} if description is None else description.json
        self._devices = dict(devices_of(self._json))

    def decode(self, section: events.DeviceSection, *, values: bool = True) -> tuple[Field, ...]:
        """Return the fields of a device; one of type `undescribed` if the description lacks it.

        Without `values`, fields of unknown type with more than LARGE bytes are empty and take no
        memory. Raises StreamError if the payload is not as described, or the description is
        invalid.
        """
        structure = self._devices.get((section.name, section.instance_id))
        of = (section.payload, section.payload_offset, section.name)
        return decode(structure, *of, values=values)

    def decode_configuration(self, configuration: events.Configuration) -> tuple[Field, ...]:
        """Return the fields of the configuration, which only newer streams describe."""
        values = (configuration.page_size, configuration.capabilities, configuration.uuid)
        payload = build_configuration(configuration.machine, *values)[1:]
        structure = self._json.get("configuration")
        return decode(structure, payload, configuration.offset + 1, "configuration")


def decode(
    structure: Structure | None,
    payload: Payload,
    offset: int,
    section: str,
    *,
    values: bool = True,
) -> tuple[Field, ...]:
    """Return the fields of a payload at `offset` in the stream.

    The result is one field of type `undescribed` if the description is missing, or hides part of
    the payload. Raises StreamError.
    """

    def undescribed() -> tuple[Field, ...]:
        value = whole(payload) if values or len(payload) <= LARGE else b""
        return (Field("payload", "undescribed", offset, len(payload), value),)

    if structure is None:
        return undescribed()
    try:
        return _decode(structure, payload, offset, section, values=values)
    except StreamError:
        if isinstance(structure, dict) and _hides_structures(structure):
            return undescribed()
        raise


def _hides_structures(structure: Structure) -> bool:
    """Return whether an array of pointers is described by a null pointer, its first element.

    QEMU before 10.0 does this; the structures of the other pointers are in the payload,
    undescribed.
    """
    try:
        return any(
            entry.get("struct") == {} and extent(entry)[0] > 1 for entry in fields_of(structure)
        )
    except DescriptionError:
        return False


def _decode(
    structure: Structure, payload: Payload, offset: int, section: str, *, values: bool
) -> tuple[Field, ...]:
    try:
        if not isinstance(structure, dict):
            raise DescriptionError("it is no object")
        declared = _declare_structure(structure)
    except DescriptionError as error:
        message = f"its description makes no sense: {error}"
        raise StreamError(message, offset=offset, section=section) from None
    if declared.size > len(payload):
        message = f"the section has {len(payload)} bytes, its description {declared.size}"
        raise StreamError(message, offset=offset, section=section)
    data = opened(payload)
    try:
        found = cast(
            "tuple[Field, ...]",
            declared.construct.parse_stream(data, offset=offset, wanted=values),
        )
    except StreamError as error:
        error.section = section
        raise
    if data.tell() != len(payload):
        message = f"the section has {len(payload)} bytes, its description {data.tell()}"
        raise StreamError(message, offset=offset, section=section)
    return found


def leaves(fields: tuple[Field, ...], path: str = "") -> Iterator[tuple[str, Field]]:
    """Yield the fields that hold no other fields, each after its path of names joined by `/`."""
    for field in fields:
        here = f"{path}{field.name}"
        if isinstance(field.value, tuple):
            yield from leaves(field.value, f"{here}/")
        else:
            yield here, field
