"""Write the configuration section, which names the source's machine."""

from __future__ import annotations

from collections.abc import Sequence

from . import stream
from .marks import CAPABILITIES, PAGE_BITS, UUID


def build_configuration(
    machine: str,
    page_size: int | None = None,
    capabilities: Sequence[str] | None = None,
    uuid: bytes | None = None,
) -> bytes:
    """Return the bytes of the section; a subsection whose value is None is left out."""
    values = {
        PAGE_BITS: None if page_size is None else page_size.bit_length() - 1,
        CAPABILITIES: None if capabilities is None else [n.encode() for n in capabilities],
        UUID: uuid,
    }
    pieces: list[bytes] = [stream.ConfigurationHeader.build({"machine": machine.encode()})]
    for name, body in stream.CONFIGURATION_SUBSECTIONS.items():
        if values[name] is not None:
            pieces.append(stream.SubsectionHeader.build({"name": name, "version": 1}))
            pieces.append(body.build(values[name]))
    return b"".join(pieces)
