"""Shows what a relay passes: a line a second, for people or as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from ...guest.sizes import format_size
from ...relay.figures import Figures
from ...relay.run import Relay
from ...relay.session import Session
from ...relay.view import StreamView
from .progress import Progress
from .rate import Rate
from .relay_forecast import RelayForecast

INTERVAL = 1.0
"""Seconds between two lines."""


class RelayProgress:
    """The lines of a relay on standard error; with `as_json`, its figures on standard output."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet = quiet
        self._as_json = as_json

    def say(self, line: str) -> None:
        """Show one line."""
        if not self._quiet:
            Progress.say(f"relay: {line}")

    async def watch(self, relay: Relay) -> None:
        """Show the figures of each session of a relay, until cancelled."""
        shown: _Shown | None = None
        while True:
            await asyncio.sleep(INTERVAL)
            session = relay.session
            if session is None:
                continue
            if shown is None or session is not shown.session:
                shown = _Shown(session)
            shown.look()
            if self._as_json:
                self._print(json.dumps(shown.as_json()))
            else:
                self.say(", ".join(shown.details()))
            for line in shown.advice():
                self.say(line)

    def _print(self, line: str) -> None:
        """Print a line to standard output; a failure to write it must not fail the migration."""
        try:
            print(line, file=sys.stdout, flush=True)
        except OSError as error:
            self.say(f"standard output: {error.strerror}; no more figures are written there")
            # Buffered data would fail again at exit, and change the exit status.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Shown:
    """The figures of one session as lines of text or JSON, and the advice given so far."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._rate = Rate(time.monotonic)
        self._forecast: RelayForecast | None = None
        self._advised = False

    @property
    def _view(self) -> StreamView | None:
        return self.session.watch.view

    def look(self) -> None:
        """Take in the present figures."""
        self._rate.note(self.session.figures.transferred)
        view = self._view
        if view is None or not view.total:
            return
        if self._forecast is None:
            self._forecast = RelayForecast(view, self.session.max_bandwidth)
        self._forecast.update(self.session.figures.ratio, self.session.watch.zstd)

    @property
    def _remaining(self) -> float | None:
        """Return the seconds to the end, as far as they are known."""
        view = self._view
        if view is None or self._forecast is None or view.round_began is None:
            return None
        if view.error or view.channel_error or view.postcopy or self.session.watch.behind:
            return None
        return self._forecast.remaining(time.monotonic() - view.round_began)

    def details(self) -> list[str]:
        """Return the figures in words."""
        details = _of_stream(self._view, self._remaining) + _of_link(self.session.figures)
        rate = self._rate.recent
        if rate is not None:
            details.append(f"link {format_size(rate)}/s")
        if not self.session.carriers and not self.session.leaving:
            details.append("the link is cut")
        if self.session.ending.held:
            details.append("the source is kept waiting")
        return details

    def advice(self) -> list[str]:
        """Return why the rounds do not shrink and what would help, once."""
        stall = None if self._forecast is None else self._forecast.stall
        if stall is None or self._advised:
            return []
        self._advised = True
        return [stall.reason, *(f"  what would help: {line}" for line in stall.advice)]

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name, with hyphens."""
        session, rate = self.session, self._rate.recent
        return {
            **session.figures.as_json(),
            "rate": None if rate is None else round(rate),
            "ratio": round(session.figures.ratio, 3),
            "encrypted": session.watch.opaque is not None,
            "held": session.ending.held,
            "stream": None if self._view is None else self._stream_as_json(self._view),
        }

    def _stream_as_json(self, view: StreamView) -> dict[str, Any]:
        forecast, remaining = self._forecast, self._remaining
        downtime = None if forecast is None else forecast.downtime
        stall = None if forecast is None else forecast.stall
        return {
            "machine": view.machine,
            "ram": view.total,
            "position": view.position,
            "page-size": view.page_size,
            "pages": dict(view.pages),
            "round": view.round,
            "pages-in-round": view.pages_in_round,
            "multifd": view.multifd,
            "postcopy": view.postcopy,
            "ended": view.ended,
            "error": None if view.error is None else str(view.error),
            "behind": self.session.watch.behind,
            "remaining-time": None if remaining is None else round(remaining * 1000),
            "expected-downtime": None if downtime is None else round(downtime * 1000),
            "stall": None if stall is None else stall.as_json(),
        }


def _of_stream(view: StreamView | None, remaining: float | None) -> list[str]:
    """Return in words what a stream has shown; `remaining` in seconds."""
    if view is None:
        return []
    if view.ended:
        return ["all of the guest has passed"]
    details = [f"round {view.round}"]
    if view.channel_error is not None:
        details.append("the pages of multifd cannot be read")
    elif view.round == 0 and view.total:
        details.append(f"{view.pages_in_round * view.page_size / view.total:.0%} of RAM")
    if remaining is not None:
        details.append(f"{remaining:.1f} s to go")
    return details + [f"{count} pages {kind}" for kind, count in view.pages.items() if count]


def _of_link(figures: Figures) -> list[str]:
    """Return in words what the link does."""
    moved = format_size(figures.read + figures.written)
    details = [f"{moved} passed", f"ratio {figures.ratio:.2f}"]
    if figures.level:
        details.append(f"zstd {figures.level}")
    return details
