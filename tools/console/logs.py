"""Defines the option `--log-level`, which logs events to standard error, one line each."""

from __future__ import annotations

import logging

import click

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def _set_up(_context: click.Context, _option: click.Parameter, level: str | None) -> None:
    if level is not None:
        logging.basicConfig(level=level.upper(), format=FORMAT)


log_option = click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    expose_value=False,
    callback=_set_up,
    help="log to standard error: states, connections and QMP commands from info on, the tracebacks "
    "of child processes with debug",
)
"""An option for commands that run for long; without it nothing is logged."""
