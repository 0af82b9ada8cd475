"""Names of the files that parts of a guest are kept in."""

from __future__ import annotations

from urllib.parse import quote


def file_name(number: int, name: str) -> str:
    """Names come from streams: nothing in them may leave the folder."""
    return f"{number:03d}-{quote(name, safe='', errors='replace')[:200]}"
