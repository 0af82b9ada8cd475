"""Signals that ask a command to end: one line or none, nothing left behind, never a traceback.

    start, imports     the system's own: there is nothing to put in order yet
    the command        Interrupted, raised in the main thread; or what `on_signals` was given
    the end of it      ignored: it is done, and what it started is being ended

In a shell the exit status is 130 for SIGINT, 143 for SIGTERM and 129 for SIGHUP. SIGHUP stays
ignored where it was, as under nohup.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The module takes too long to import here.
    from asyncio import AbstractEventLoop

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 1.0
"""Seconds after a signal in which further ones do not interrupt what puts things in order."""
_RETRY = 0.01
"""Seconds until an Interrupted that nobody could catch is raised again."""

_last = 0.0


class Interrupted(SystemExit):
    """A signal asked the command to end; `code` is the exit status."""


def start() -> None:
    """Before anything is imported: a signal ends the process as it ends any other program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin() -> None:
    """Let signals raise Interrupted in the main thread."""
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGALRM, _interrupt_again)
    _handle(_interrupt)


def on_signals(action: Callable[[int], object]) -> None:
    """Let signals call `action` with their number, in the main thread between any two steps."""
    _handle(lambda number, _: action(number))


@contextmanager
def signals_in(loop: AbstractEventLoop, action: Callable[[int], object]) -> Iterator[None]:
    """Let signals call `action` with their number in the event loop; behind this, ignore them."""
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
    """Ignore signals: the command is over."""
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
    """Keep an Interrupted that the interpreter has to drop, as it does in `__del__`."""
    if isinstance(what.exc_value, Interrupted):
        _lost.append(what.exc_value)
        signal.setitimer(signal.ITIMER_REAL, _RETRY)
    else:
        sys.__unraisablehook__(what)
