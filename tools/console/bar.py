"""Draws progress bars on a terminal, with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class Bar:
    """The bar of a migration on standard error, with a title before it and details below it."""

    def __init__(self, title: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(title), BarColumn(), TextColumn("{task.description}", markup=False)
        )
        self._task = self._progress.add_task("waiting", total=None)
        self._live = Live(self._progress, console=console, refresh_per_second=10)

    def start(self) -> None:
        """Draw the bar from now on. While it is shown, what is printed appears above it."""
        self._live.start()

    def stop(self) -> None:
        """Draw the bar for the last time."""
        self._live.stop()

    def update(self, total: int, completed: int, head: str, details: str) -> None:
        """Show these bytes of `total`; the head beside the bar, and the details in a line below."""
        self._progress.update(self._task, total=total, completed=completed, description=head)
        self._live.update(Group(self._progress, Text(f"  {details}", overflow="ellipsis")))


@contextmanager
def transfer(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draw bytes done of `total`, rate and time left on standard error; yield what updates them."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        task = progress.add_task(title, total=total)
        yield lambda completed: progress.update(task, completed=completed)
