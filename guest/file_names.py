"""Name the files that hold parts of a guest."""

from __future__ import annotations

from urllib.parse import quote


def file_name(number: int, name: str) -> str:
    """Return a file name for a part called `name` in the stream; it cannot leave the folder."""
    return f"{number:03d}-{quote(name, safe='', errors='replace')[:200]}"
