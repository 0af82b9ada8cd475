"""Make and read the device state of a guest that keeps all of it in one section."""

from __future__ import annotations

from ..protocol.wire.kept import whole
from .base import DeviceSection, DeviceState
from .description import describe_opaque
from .errors import GuestError

RAM_SECTION_ID = 2
"""Id of the RAM section; the one of the devices follows."""


def one_section(name: str, version: int, payload: bytes, page_size: int) -> DeviceState:
    """Return a device state that is one section with this payload, and its description."""
    section = DeviceSection(RAM_SECTION_ID + 1, name, 0, version, payload)
    return DeviceState((), (section,), describe_opaque([section], page_size), RAM_SECTION_ID)


def payload_of(state: DeviceState, name: str, version: int) -> bytes:
    """Return the payload of the one section that `one_section` made.

    Raises GuestError if there are others, or if it has another name or version.
    """
    sections = (*state.early, *state.sections)
    found = [(section.name, section.version) for section in sections]
    if found != [(name, version)]:
        raise GuestError(f"{name}: device sections {found} are not its own")
    return whole(sections[0].payload)
