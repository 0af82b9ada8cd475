"""Lays out the examples at the end of a command's help."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """Return the epilog of a command's help with these command lines, which click must not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  vmferry {line}" for line in lines)
