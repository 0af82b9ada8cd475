"""Read and change the run state that a guest has in its device section `globalstate`.

A destination lets the guest run if the section says that it ran as it was saved. A QEMU that was
stopped to be read says "paused" there.
Source: the descriptions of streams of QEMU 7.2 and 10.0, which name the section's fields.
"""

from __future__ import annotations

from dataclasses import replace

import construct as c  # type: ignore[import-untyped]

from ...protocol.wire.kept import whole
from ..parts import DeviceSection, DeviceState

_NAME = "globalstate"
_TEXT_SIZE = 32
_GlobalState = c.Struct(
    "size" / c.Int32ub,
    "text" / c.Bytes(_TEXT_SIZE),
    "rest" / c.GreedyBytes,
)
"""The section: length of the run state with its NUL, and its text, padded with NULs."""
_RUNNING = "running"
_STOPPED = "paused"


def says_stopped(state: DeviceState) -> bool:
    """Return whether the guest is not to run where this state is loaded."""
    found = [_text(section) for section in state.sections if _is_global_state(section)]
    return bool(found) and found[0] != _RUNNING


def as_running(state: DeviceState) -> DeviceState:
    """Return the state of a guest that was only stopped to be saved, so that it runs on."""
    sections = tuple(
        _running(section) if _is_global_state(section) else section for section in state.sections
    )
    return replace(state, sections=sections)


def _is_global_state(section: DeviceSection) -> bool:
    return section.name == _NAME and len(section.payload) >= 4 + _TEXT_SIZE


def _text(section: DeviceSection) -> str:
    text: bytes = _GlobalState.parse(whole(section.payload)).text
    return text.partition(b"\0")[0].decode(errors="replace")


def _running(section: DeviceSection) -> DeviceSection:
    if _text(section) != _STOPPED:
        return section
    found = _GlobalState.parse(whole(section.payload))
    found.text = _RUNNING.encode().ljust(_TEXT_SIZE, b"\0")
    found.size = len(_RUNNING) + 1
    payload: bytes = _GlobalState.build(found)
    return replace(section, payload=payload)
