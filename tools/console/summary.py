"""Summarises a finished outgoing migration for users: its figures, and how they were forecast."""

from __future__ import annotations

from collections.abc import Iterator

from ...guest.sizes import format_size
from ...sender.figures import Figures


def summary(figures: Figures) -> Iterator[str]:
    """Yield the lines of the summary."""
    seconds = figures.total_time / 1000
    rate = format_size(figures.transferred / max(seconds, 1e-3))
    yield f"rounds       {figures.dirty_sync_count} (the last one on a paused guest)"
    yield f"sent         {format_size(figures.transferred)} in {seconds:.2f} s, {rate}/s"
    yield f"pages        {figures.normal} plain, {figures.duplicate} zero{_differences(figures)}"
    if figures.tracker is not None:
        yield f"tracker      {figures.tracker}"
    if figures.compression is not None:
        compression = figures.compression
        yield f"compression  {compression.method}, {compression.rate:.2f} : 1"
    forecast = figures.forecast
    yield f"total time   {figures.total_time} ms{_total_forecast(figures)}"
    foreseen = "" if forecast.downtime is None else f" (forecast: {forecast.downtime} ms)"
    yield f"downtime     {figures.downtime} ms{foreseen}"
    if figures.throttle is not None:
        yield f"guest        slowed down by {figures.throttle.highest}% at most"


def _differences(figures: Figures) -> str:
    return "" if figures.xbzrle is None else f", {figures.xbzrle.pages} as differences"


def _total_forecast(figures: Figures) -> str:
    forecast = figures.forecast
    if forecast.after_round is None:
        return ""
    what = "no end" if forecast.total_time is None else f"{forecast.total_time} ms"
    return f" (forecast after round {forecast.after_round}: {what})"
