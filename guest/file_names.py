"""Name the files that hold parts of a guest."""

from __future__ import annotations

from urllib.parse import quote


def quoted(name: str) -> str:
    """Return a name in the stream as the name of a file; it cannot leave the folder."""
    return quote(name, safe="", errors="replace")


def file_name(number: int, name: str) -> str:
    """Return a file name for a part called `name` in the stream; it cannot leave the folder."""
    return f"{number:03d}-{quoted(name)[:200]}"
