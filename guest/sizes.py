"""Parse and format sizes and rates as users write them: `512M`, `1.5GiB`, `100MiB/s`, `4096`."""

from __future__ import annotations

import re

MAX_SIZE = (1 << 63) - 1
"""Largest size of a file on Linux, in bytes."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PATTERN = re.compile(r"(\d+)(?:\.(\d+))?\s*([KMGT]?)(?:i?B)?(?:/s)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the size in bytes; units are powers of 1024. Raises ValueError."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512M")
    unit = _UNITS[match[3].upper()]
    fraction = match[2] or "0"
    parts: int = 10 ** len(fraction)
    value = int(match[1]) * unit + int(fraction) * unit // parts
    if value > MAX_SIZE:
        raise ValueError(f"{text!r} is more than a file can hold")
    return value


def format_size(count: float) -> str:
    """Return a size in bytes as text for users, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
