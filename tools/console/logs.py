"""Defines the options that say how much a command reports: `-q`, `-v` and `--log-level`."""

from __future__ import annotations

import logging

import click

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def _set_up(_context: click.Context, _option: click.Parameter, level: str | None) -> None:
    if level is not None:
        logging.basicConfig(level=level.upper(), format=FORMAT)


def _more(context: click.Context, option: click.Parameter, times: int) -> None:
    _set_up(context, option, ("info", "debug")[min(times, 2) - 1] if times else None)


_level_option = click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    expose_value=False,
    callback=_set_up,
    help="log to standard error, one line per event: info reports changes of state, connections and"
    " QMP commands; debug adds the tracebacks of child processes",
)
_verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=_more,
    help="the same as --log-level info; -vv is the same as --log-level debug",
)


def log_options(function: click.decorators.FC) -> click.decorators.FC:
    """Add `-v` and `--log-level` to a command that runs for long; by default nothing is logged."""
    return _verbose_option(_level_option(function))


quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    help="print only errors: no progress, no result",
)
