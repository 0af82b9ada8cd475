"""Handles signals that ask a command to end: at most one line, no leftovers, never a traceback.

    start, imports     the default action of the system: there is nothing to clean up yet
    the command        Interrupted is raised in the main thread, or `on_signals` calls its action
    the end of it      signals are ignored: the work is done, and child processes are being ended

In a shell the exit status is 130 for SIGINT, 143 for SIGTERM and 129 for SIGHUP. SIGHUP stays
ignored if it was ignored at the start, as with nohup.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager

# Ctrl-C shows a traceback until this module has been imported, so it imports as little as it can.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 1.0
"""The time in seconds after a signal in which further signals do not interrupt the cleanup."""
_RETRY = 0.01
"""The delay in seconds until an Interrupted that could not be caught is raised again."""

_last = 0.0


class Interrupted(SystemExit):
    """Raised if a signal asks the command to end; `code` is the exit status."""


def start() -> None:
    """Restore the default action of SIGINT, so that a signal during imports ends the process
    silently.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin() -> None:
    """Make signals raise Interrupted in the main thread."""
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGALRM, _interrupt_again)
    _handle(_interrupt)


def on_signals(action: Callable[[int], object]) -> None:
    """Make signals call `action` with their number, in the main thread between any two steps."""
    _handle(lambda number, _: action(number))


@contextmanager
def signals_in(loop: AbstractEventLoop, action: Callable[[int], object]) -> Iterator[None]:
    """Make signals call `action` with their number in the event loop; afterwards, ignore them."""
    numbers = _not_ignored()
    for number in numbers:
        loop.add_signal_handler(number, action, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        end()


def end() -> None:
    """Ignore signals from here on, because the command has finished."""
    _handle(signal.SIG_IGN)


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in _not_ignored():
        signal.signal(number, handler)


def _not_ignored() -> list[signal.Signals]:
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _SIGNALS if number != signal.SIGHUP or not ignored]


def _interrupt(number: int, _: FrameType | None) -> None:
    global _last
    before, _last = _last, time.monotonic()
    if _last - before > _PATIENCE:
        raise Interrupted(128 + number)


def _interrupt_again(*_: object) -> None:
    if _lost:
        raise _lost.pop()


_lost: list[Interrupted] = []


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Keep an Interrupted that the interpreter cannot raise, as in `__del__`, to raise it again
    later.
    """
    if isinstance(what.exc_value, Interrupted):
        _lost.append(what.exc_value)
        signal.setitimer(signal.ITIMER_REAL, _RETRY)
    else:
        sys.__unraisablehook__(what)
