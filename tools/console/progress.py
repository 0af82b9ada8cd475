"""Shows the live progress of a migration: a bar on a terminal, else a plain line every second."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ...guest.sizes import format_size
from ...protocol.states import MigrationStatus
from ...sender.stall import Explanation, Stall, command_line_option
from .rate import Rate

if TYPE_CHECKING:
    # rich is slow to import, and is needed on a terminal alone.
    from .bar import Bar


class Figures(Protocol):
    """The figures that both the sender and the receiver have."""

    @property
    def status(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def transferred(self) -> int: ...


class Progress:
    """A context manager that shows the progress of a migration; `update` takes the figures.

    If `quiet`, it shows nothing.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self._title = title
        self._bar: Bar | None = None
        self._rate = Rate(time.monotonic)
        self._last = 0.0
        self._told = False
        self._quiet = quiet
        if sys.stderr.isatty() and not quiet:
            from .bar import Bar  # noqa: PLC0415

            self._bar = Bar(title)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, figures: Figures) -> None:
        """Show these figures, at most once per second without a terminal."""
        if self._quiet:
            return
        self._rate.note(figures.transferred)
        completed = figures.status == MigrationStatus.COMPLETED
        # A watcher that joins at the end has seen no transfer, so it has no rate to show.
        rate = (self._rate.of_all or None) if completed else self._rate.recent
        head, details = _head(figures), _details(figures, rate)
        self._tell_stall(getattr(figures, "stall", None))
        if self._bar is not None:
            self._bar.update(figures.total, _done(figures), head, ", ".join(details))
        elif completed or time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            self.say(f"{self._title}: {', '.join([head, *details])}")

    def listening(self, address: str) -> None:
        """Show where the source has to connect."""
        if not self._quiet:
            self.say(f"listening on {address}")

    def _tell_stall(self, stall: Stall | Explanation | None) -> None:
        """Print the reason and the advice when a stall begins for the first time."""
        if stall is not None and not self._told:
            self._told = True
            told = stall.explain(command_line_option) if isinstance(stall, Stall) else stall
            self.say(f"{self._title}: {told.reason}")
            for line in told.advice:
                self.say(f"  what would help: {line}")

    @staticmethod
    def say(line: str) -> None:
        """Print a line to standard error; a failure to write it must not fail the migration."""
        try:
            # While the bar is shown, rich redirects print, so that lines appear above the bar.
            print(line, file=sys.stderr, flush=True)
        except OSError:
            # Buffered data would fail again at exit, and change the exit status.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _done(figures: Figures) -> int:
    return figures.total - getattr(figures, "remaining", 0)


def _head(figures: Figures) -> str:
    """Return what a watcher wants to know first: the state, how much is done, and how long yet."""
    head = str(figures.status)
    if figures.status == MigrationStatus.ACTIVE and figures.total and hasattr(figures, "remaining"):
        head += f", {_done(figures) / figures.total:.0%}"
    remaining = getattr(figures, "remaining_time", None)
    return f"{head}, {remaining / 1000:.1f} s to go" if remaining else head


def _details(figures: Figures, rate: float | None) -> list[str]:
    """Return the figures of a migration, as far as it has any; `rate` in bytes per second."""
    if not figures.total:
        return []
    sent = format_size(figures.transferred)
    details = [sent if rate is None else f"{sent} at {format_size(rate)}/s"]
    rounds = getattr(figures, "dirty_sync_count", None)
    if rounds is not None:
        details += [f"round {rounds}", f"{format_size(getattr(figures, 'remaining', 0))} left"]
    disk = getattr(figures, "disk", None)
    if disk is not None and disk.remaining:
        details.append(f"{format_size(disk.remaining)} of it disks")
    tracker = getattr(figures, "tracker", None)
    if tracker is not None:
        details.append(f"tracker {tracker}")
    compression = getattr(figures, "compression", None)
    if compression is not None:
        details.append(_level(compression.levels))
    throttle = getattr(figures, "throttle", None)
    if throttle is not None and throttle.percentage:
        details.append(f"guest slowed by {throttle.percentage}%")
    return details


def _level(levels: tuple[int, ...]) -> str:
    """Return `zstd 1`, or `zstd none-3` if the compressing processes use different levels."""
    names = [str(level) if level else "none" for level in sorted(set(levels))]
    return "zstd " + (names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}")
