"""Find out what a QEMU wrote about a failure, even if it has ended since."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MOST = 4096
"""Bytes of a log that are looked at, from its end."""
_LINES = 2
"""Last lines that are told: QEMU says what failed, and then that something did."""


class Log:
    """The standard error of a process, which has to live when this object is made.

    `words` for whose it is: `its`, or `the destination's`.
    """

    def __init__(self, process: int, words: str = "its") -> None:
        self._words = words
        self._path: Path | None = None
        self._from = 0
        # The process may be of another user, or in another namespace.
        with suppress(OSError):
            self._path = Path(f"/proc/{process}/fd/2").readlink()
            self._from = self._path.stat().st_size if self._path.is_file() else 0

    def __str__(self) -> str:
        """Return the last lines that were written since, or in words where to look."""
        if self._path is None:
            return f"{self._words} log says why"
        if not self._path.is_file():
            return f"{self._words} standard error says why"
        said = self._said()
        if said:
            return f"{self._words} log {self._path} ends with: {'; '.join(said[-_LINES:])}"
        return f"{self._words} log {self._path} may say why"

    def _said(self) -> list[str]:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                file.seek(max(self._from, self._path.stat().st_size - _MOST))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return []
        return [" ".join(line.split()) for line in lines if line.strip()]
