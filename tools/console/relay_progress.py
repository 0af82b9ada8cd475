"""Shows what a relay passes: a line a second, for people or as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from ...guest.sizes import format_size
from ...relay.figures import Figures
from ...relay.run import Relay
from .progress import Progress
from .rate import Rate

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
        shown, rate = None, Rate(time.monotonic)
        while True:
            await asyncio.sleep(INTERVAL)
            session = relay.session
            if session is None:
                continue
            if session is not shown:
                shown, rate = session, Rate(time.monotonic)
            rate.note(session.figures.transferred)
            self._show(session.figures, rate.recent)

    def _show(self, figures: Figures, rate: float | None) -> None:
        if self._as_json:
            print(json.dumps(figures.as_json()), file=sys.stdout, flush=True)
        else:
            self.say(", ".join(_details(figures, rate)))


def _details(figures: Figures, rate: float | None) -> list[str]:
    """Return the figures in words; `rate` is that of the link, in bytes per second."""
    moved = format_size(figures.read + figures.written)
    details = [f"{moved} passed"]
    if rate is not None:
        details.append(f"link {format_size(rate)}/s")
    details.append(f"ratio {figures.ratio:.2f}")
    if figures.level:
        details.append(f"zstd {figures.level}")
    if not figures.connections:
        details.append("the link is cut")
    return details
