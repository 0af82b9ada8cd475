"""Draws the results of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from .cases import BenchError
from .results import Report, Result

_MIB = 1 << 20
_COLOURS = {"vmferry": "#1f6feb", "qemu": "#d29922", "limit": "#9aa0a6"}
_ENDINGS = (".png", ".svg")


def _downtime(result: Result) -> float | None:
    return result.downtime * 1000 if result.case.live and result.program != "limit" else None


def _beyond(result: Result) -> float | None:
    beyond = result.beyond
    return None if beyond is None else (beyond.source + beyond.destination) / _MIB


_PANELS: tuple[tuple[str, Callable[[Result], float | None]], ...] = (
    ("guest RAM, GiB/s", lambda result: result.throughput),
    ("downtime, ms", _downtime),
    ("CPU s/GiB, both ends", lambda result: result.cpu),
    ("memory beyond the guest's, MiB, both ends", _beyond),
)


def check_plot(path: Path) -> None:
    """Raise BenchError, before anything is measured, if no picture could be made at `path`."""
    if path.suffix not in _ENDINGS:
        raise BenchError(f"--plot: {path} ends neither in {' nor in '.join(_ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise BenchError(f"--plot: there is no folder {path.absolute().parent}")
    _library()


def _library() -> Any:
    try:
        library = import_module("matplotlib")
    except ImportError:
        raise BenchError("--plot needs matplotlib: pip install 'vmferry[plot]'") from None
    # The picture is a file: no display is needed.
    library.use("agg")
    return import_module("matplotlib.pyplot")


def draw(report: Report, path: Path) -> None:
    """Write the picture, with one panel a figure and one group of bars a case."""
    pyplot = _library()
    cases = list(dict.fromkeys(result.case for result in report.results))
    height = 1.5 + 0.6 * len(cases)
    figure, panels = pyplot.subplots(1, len(_PANELS), figsize=(17, height), sharey=True)
    for axes, (title, value) in zip(panels, _PANELS, strict=True):
        _bars(axes, report, cases, value)
        axes.set_title(title, fontsize=10)
    panels[0].set_yticks(range(len(cases)), [str(case) for case in cases], fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right", fontsize=8, ncols=3)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(
    axes: Any, report: Report, cases: list[Any], value: Callable[[Result], float | None]
) -> None:
    thickness = 0.8 / len(_COLOURS)
    for place, (program, colour) in enumerate(_COLOURS.items()):
        found = {its.case: value(its) for its in report.results if its.program == program}
        shown = [(cases.index(case), its) for case, its in found.items() if its is not None]
        if not shown:
            continue
        rows = [row + (place - 1) * thickness for row, _ in shown]
        widths = [width for _, width in shown]
        bars = axes.barh(rows, widths, thickness, color=colour, label=program)
        axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
    axes.margins(x=0.15)
