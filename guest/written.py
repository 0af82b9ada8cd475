"""Write the parts of a guest as a stream has them."""

from __future__ import annotations

from ..protocol import events
from ..protocol.writer import StreamWriter
from .parts import DeviceSection


def written_section(section: DeviceSection) -> bytes:
    """Return a device's section with its footer."""
    return StreamWriter().write(
        events.DeviceSection(
            offset=0,
            section_id=section.section_id,
            name=section.name,
            instance_id=section.instance_id,
            version=section.version,
            payload=section.payload,
            payload_offset=0,
            footer=True,
        )
    )
