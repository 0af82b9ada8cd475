"""Keep the migration capabilities under QEMU's names: which are on, and which cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import QmpError

_NO_POSTCOPY = "a guest runs at the destination only when all of it has arrived"

CAPABILITIES: dict[str, str | None] = {
    "xbzrle": None,
    "rdma-pin-all": "there is no RDMA",
    "auto-converge": None,
    "zero-blocks": None,
    "compress": "what QEMU calls so is not implemented",
    "events": None,
    "postcopy-ram": _NO_POSTCOPY,
    "x-colo": "a guest runs in one place",
    "release-ram": _NO_POSTCOPY,
    "block": None,
    "return-path": None,
    "pause-before-switchover": None,
    "multifd": None,
    "dirty-bitmaps": None,
    "postcopy-blocktime": _NO_POSTCOPY,
    "late-block-activate": "the images of a guest are in use for as long as it is here",
    "x-ignore-shared": "all RAM is sent",
    "validate-uuid": "the guest itself says whether it takes a machine in",
    "background-snapshot": "writes of the guest are not seen one by one",
    "zero-copy-send": "pages are copied before they are sent",
    "postcopy-preempt": _NO_POSTCOPY,
    "mapped-ram": None,
}
"""The capabilities of QEMU 7.2, in its order, each with the reason if it cannot be switched on; and
`mapped-ram` of QEMU 9.0.
"""


_NOT_TOGETHER = (
    ("multifd", "sends no differences", "xbzrle"),
    ("mapped-ram", "has no differences", "xbzrle"),
    ("mapped-ram", "has several workers by itself", "multifd"),
)


class Capabilities:
    """The set of capabilities that are on; all are off at first."""

    def __init__(self) -> None:
        self._on: set[str] = set()

    def __getitem__(self, name: str) -> bool:
        return name in self._on

    def set(self, wanted: Iterable[tuple[str, bool]]) -> None:
        """Switch these on or off: all of them, or none if QmpError is raised."""
        wanted = list(wanted)
        for name, state in wanted:
            reason = CAPABILITIES[name]
            if state and reason is not None:
                raise QmpError(f"Capability '{name}' cannot be switched on: {reason}")
        on = set(self._on)
        for name, state in wanted:
            (on.add if state else on.discard)(name)
        for one, what, other in _NOT_TOGETHER:
            if {one, other} <= on:
                raise QmpError(f"Capability '{one}' {what}: switch '{other}' off first")
        self._on = on

    def as_qmp(self) -> list[dict[str, Any]]:
        """Return all capabilities as `query-migrate-capabilities` lays them out."""
        return [{"capability": name, "state": name in self._on} for name in CAPABILITIES]
