"""Define the findings of a comparison: reasons why a stream does not load, and warnings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """The kinds of findings, under their names in JSON."""

    MACHINE = "machine"
    PAGE_SIZE = "page-size"
    CAPABILITY = "capability"
    NO_BLOCK = "block-missing"
    BLOCK_SIZE = "block-size"
    NO_SECTION = "section-missing"
    NO_INSTANCE = "instance-missing"
    TOO_NEW = "version-too-new"
    TOO_OLD = "version-too-old"
    SUBSECTION = "subsection-unknown"
    LAYOUT = "layout"
    PCI = "pci-configuration"
    FIELD = "field"
    REFUSED = "refused"
    EXTRA = "device-extra"
    UNCHECKED = "unchecked"


WARNINGS = frozenset((Kind.EXTRA, Kind.UNCHECKED))
"""The kinds that do not keep a stream from loading."""


@dataclass(frozen=True)
class Finding:
    """One difference between a stream and the side that is to load it.

    `where`: the RAM block, device or capability; `a` and `b`: what each side has, or None.
    `detail`: the field, byte or subsection concerned. `option`: what to say at B's start, or None
    if it is not known.
    """

    kind: Kind
    where: str
    a: str | int | None = None
    b: str | int | None = None
    detail: str | None = None
    option: str | None = None

    @property
    def fatal(self) -> bool:
        """Return whether the stream does not load because of it."""
        return self.kind not in WARNINGS

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys kind, where, a, b, detail, option, fatal."""
        return {
            "kind": self.kind.value,
            "where": self.where,
            "a": self.a,
            "b": self.b,
            "detail": self.detail,
            "option": self.option,
            "fatal": self.fatal,
        }
