"""Draws the progress bar of a migration on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Bar:
    """A bar on standard error with a title before it and a line behind it."""

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
