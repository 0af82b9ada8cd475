"""Draws progress bars on a terminal, with rich."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    """The bar of a migration, on standard error, with a title before it and a line behind it."""

    def __init__(self, title: str) -> None:
        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("waiting", total=None)

    def start(self) -> None:
        """Draw the bar from now on. While it is shown, what is printed appears above it."""
        self._progress.start()

    def stop(self) -> None:
        """Draw the bar for the last time."""
        self._progress.stop()

    def update(self, total: int, completed: int, line: str) -> None:
        """Show these bytes of `total`, and the line."""
        self._progress.update(self._task, total=total, completed=completed, description=line)


class Transfer:
    """The bar of a command that reads a stream, on standard error: bytes, rate, time left."""

    def __init__(self, title: str, total: int | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Transfer:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, completed: int) -> None:
        """Show that this number of bytes is done."""
        self._progress.update(self._task, completed=completed)
