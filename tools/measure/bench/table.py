"""Prints the results of a benchmark as a table, and their ratios to QEMU's and to the limit."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ...console.text import echo
from .results import Report, Result

_MIB = 1 << 20
_CASE = ("GiB", "writes", "content", "memory", "variant", "program")
_FIGURES = ("GiB/s", "x limit", "down ms", "CPU s/GiB", "wire MiB", "wrote MiB/s", "beyond MiB")


def print_report(report: Report) -> None:
    """Print everything, one row for each program in each case."""
    table = Table(*_CASE, *_FIGURES, "setup s", box=None)
    for result in report.results:
        table.add_row(*_names(result), *_figures(report, result))
    # A table that is cut off at the edge of a terminal is of no use.
    Console(width=max(Console().width, _WIDTH)).print(table)
    for line in [*_ratios(report), *_first_byte(report)]:
        echo(line)


_WIDTH = 150
"""Columns that the table takes."""


def _names(result: Result) -> tuple[str, ...]:
    case = result.case
    writes = "still" if case.writes is None else f"{case.writes / _MIB:g} MiB/s"
    names = (f"{case.gib:g}", writes, case.content, case.destination, case.variant.name)
    return (*names, result.program)


def _figures(report: Report, result: Result) -> tuple[str, ...]:
    limit, beyond = report.other(result, "limit"), result.beyond
    is_limit = result.program == "limit"
    return (
        f"{result.throughput:.2f}",
        "" if limit is None else f"{result.throughput / limit.throughput:.2f}",
        f"{result.downtime * 1000:.0f}" if result.case.live and not is_limit else "",
        f"{result.cpu:.2f}",
        f"{result.transferred / _MIB:.1f}",
        "" if is_limit or not result.case.live else f"{result.written / _MIB:.1f}",
        "" if beyond is None else f"{beyond.source / _MIB:.0f} + {beyond.destination / _MIB:.0f}",
        "" if is_limit else f"{result.setup:.2f}",
    )


def _ratios(report: Report) -> list[str]:
    """Return a line for each case that QEMU went through, too."""
    lines = []
    for ours in (result for result in report.results if result.program == "vmferry"):
        theirs = report.other(ours, "qemu")
        if theirs is None:
            continue
        ratios = [f"{ours.throughput / theirs.throughput:.2f} x QEMU's throughput"]
        others = [("its CPU", ours.cpu, theirs.cpu)]
        if ours.case.live:
            others.append(("its downtime", ours.downtime, theirs.downtime))
        others.append(("its bytes on the wire", ours.transferred, theirs.transferred))
        ratios += [f"{our / their:.2f} x {name}" for name, our, their in others if their]
        lines.append(f"{ours.case}: {', '.join(ratios)}")
    return lines


def _first_byte(report: Report) -> list[str]:
    times = report.first_byte.items()
    return [f"first byte on the wire, {name}: {seconds:.2f} s" for name, seconds in times]
