"""Make and read the device state of a guest that keeps all of it in one section, or a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..protocol.wire.kept import whole
from .description import describe_opaque
from .errors import GuestError
from .parts import DeviceSection, DeviceState

RAM_SECTION_ID = 2
"""Id of the RAM section; the one of the devices follows."""


def one_section(name: str, version: int, payload: bytes, page_size: int) -> DeviceState:
    """Return a device state that is one section with this payload, and its description."""
    return few_sections({name: payload}, version, page_size)


def few_sections(payloads: Mapping[str, bytes], version: int, page_size: int) -> DeviceState:
    """Return a device state of sections with these payloads, by name, and its description."""
    sections = tuple(
        DeviceSection(RAM_SECTION_ID + number, name, 0, version, payload)
        for number, (name, payload) in enumerate(payloads.items(), 1)
    )
    return DeviceState((), sections, describe_opaque(sections, page_size), RAM_SECTION_ID)


def payload_of(state: DeviceState, name: str, version: int) -> bytes:
    """Return the payload of the one section that `one_section` made.

    Raises GuestError if there are others, or if it has another name or version.
    """
    return payloads_of(state, (name,), version)[0]


def payloads_of(state: DeviceState, names: Sequence[str], version: int) -> list[bytes]:
    """Return the payloads of the sections with these names, which `few_sections` made.

    Raises GuestError if there are others, or if one has another name or version.
    """
    sections = (*state.early, *state.sections)
    found = [(section.name, section.version) for section in sections]
    if found != [(name, version) for name in names]:
        raise GuestError(f"{names[0]}: device sections {found} are not its own")
    return [whole(section.payload) for section in sections]
