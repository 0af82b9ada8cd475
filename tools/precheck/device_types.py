"""Reads what a QEMU says of its device types (`-dump-vmstate`): versions and subsections.

Source: QEMU's documentation, the option -dump-vmstate, and the files that QEMU 7.2 writes. A file
has an object for each device type, with the Description of its state: `name`, as in the description
of a stream (`vmsd_name`), `minimum_version_id`, and Subsections of the same form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """The state that devices with this name save: the oldest version that is read, and the names of
    the subsections that are known.
    """

    oldest: int
    subsections: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class DeviceTypes:
    """The device types of a QEMU, by the names that descriptions of streams have for them."""

    states: Mapping[str, State]

    def of(self, name: object) -> State | None:
        """Return the state with this name, or None if the QEMU does not report it."""
        return self.states.get(name) if isinstance(name, str) else None


def read_types(dumped: Mapping[str, Any]) -> DeviceTypes:
    """Return the device types in a dump; what is not as it should be is left out."""
    states: dict[str, State] = {}
    for entry in dumped.values():
        described = entry.get("Description") if isinstance(entry, dict) else None
        if not isinstance(described, dict) or not isinstance(described.get("name"), str):
            continue
        oldest = described.get("minimum_version_id")
        oldest = oldest if isinstance(oldest, int) else 0
        state = states.setdefault(described["name"], State(oldest))
        # Several device types may share a name: what one of them reads is not refused.
        state.oldest = min(state.oldest, oldest)
        state.subsections.update(_subsections(described))
    return DeviceTypes(states)


def _subsections(described: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the subsections at any depth."""
    for key in ("Subsections", "Fields"):
        found = described.get(key)
        for entry in found if isinstance(found, list) else ():
            if not isinstance(entry, dict):
                continue
            if key == "Subsections" and isinstance(entry.get("name"), str):
                yield entry["name"]
            inner = entry if key == "Subsections" else entry.get("Description")
            if isinstance(inner, dict):
                yield from _subsections(inner)
