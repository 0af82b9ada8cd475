"""Says in words what a comparison found."""

from __future__ import annotations

from collections.abc import Callable

from ...guest.sizes import format_size
from .findings import Finding, Kind


def describe(finding: Finding) -> str:
    """Return a finding as one line: what differs, and the option that would mend it."""
    line = f"{finding.where}: {_SAYS[finding.kind](finding)}"
    return line if finding.option is None else f"{line} [{finding.option}]"


def _both(finding: Finding) -> str:
    return f"A has {finding.a}, B has {finding.b}"


def _block_size(finding: Finding) -> str:
    a, b = (size for size in (finding.a, finding.b) if isinstance(size, int))
    return f"{_size(a)} in A, {_size(b)} in B"


def _size(size: int) -> str:
    """Return a size in words, and exactly where the words are not."""
    return format_size(size) if size % 1024 == 0 else f"{size} bytes"


_SAYS: dict[Kind, Callable[[Finding], str]] = {
    Kind.MACHINE: _both,
    Kind.PAGE_SIZE: _both,
    Kind.CAPABILITY: lambda f: f"the capability is {f.a} in A, {f.b} in B",
    Kind.NO_BLOCK: lambda f: f"B has no such RAM block ({_size(int(f.a or 0))} in A)",
    Kind.BLOCK_SIZE: _block_size,
    Kind.NO_SECTION: lambda _: "B has no such device",
    Kind.NO_INSTANCE: lambda _: "B has fewer of these devices",
    Kind.TOO_NEW: lambda f: f"A saves version {f.a}, B reads {f.b} at most",
    Kind.TOO_OLD: lambda f: f"A saves version {f.a}, B reads none before {f.b}",
    Kind.SUBSECTION: lambda f: f"B does not know the subsection {f.detail}",
    Kind.LAYOUT: lambda f: f"A and B save different fields: {f.detail}",
    Kind.PCI: lambda f: f"the PCI devices differ: {f.detail}: A has {f.a}, B has {f.b}",
    Kind.FIELD: lambda f: f"{f.detail} is {f.a} in A, {f.b} in B",
    Kind.REFUSED: lambda f: f"B says: {f.detail}",
    Kind.EXTRA: lambda _: "only B has it; it stays as it is after a reset",
    Kind.UNCHECKED: lambda f: f.detail or "nobody can know before whether B reads it",
}
