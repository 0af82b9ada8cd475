"""The registers of a guest's processors, out of their device state, as notes of an ELF core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..protocol.core_notes import GENERAL, SEGMENTS, registers
from ..protocol.events import Description, DeviceSection
from ..protocol.fields import Decoder, leaves

SECTION_NAME = "cpu"


def register_notes(sections: Iterable[DeviceSection], description: Description) -> list[bytes]:
    """Of each processor that the description tells of as of one of x86-64. Raises StreamError."""
    decoder = Decoder(description)
    notes = []
    for section in sections:
        values = {path: field.value for path, field in leaves(decoder.decode(section))}
        try:
            notes.append(_notes(section.instance_id, values))
        except (KeyError, TypeError, ValueError):
            # Another architecture's.
            continue
    return notes


def _notes(number: int, values: dict[str, Any]) -> bytes:
    """Raises KeyError, TypeError, ValueError where a register is not there, or none."""
    plain = {name: int(value) for name, value in zip(GENERAL, values["env.regs"], strict=True)}
    plain |= {"rip": values["env.eip"], "rflags": values["env.eflags"]}
    paths = {name: f"env.segs[{index}]" for index, name in enumerate(SEGMENTS)}
    paths |= {name: f"env.{name}" for name in ("ldt", "tr", "gdt", "idt")}
    segments = {
        name: {key: values[f"{path}/{key}"] for key in ("selector", "limit", "flags", "base")}
        for name, path in paths.items()
    }
    # There is no CR1.
    control = (values["env.cr[0]"], 0, *(values[f"env.cr[{number}]"] for number in (2, 3, 4)))
    return registers(number, plain, segments, control, values["env.kernelgsbase"])
