"""Defines the options that several commands share, and converts their text to values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ...control.announce import AnnounceError, Interface, parse_interface
from ...sender.compression import CompressionError, parse_compression


def interface(text: str) -> Interface:
    """Return the interface in `IFACE[=MAC]`. Raises BadParameter."""
    try:
        return parse_interface(text)
    except AnnounceError as error:
        raise click.BadParameter(str(error)) from None


def compression(text: str) -> str:
    """Return the text if it is a valid compression method. Raises BadParameter."""
    try:
        parse_compression(text)
    except CompressionError as error:
        raise click.BadParameter(str(error), param_hint="--compress") from None
    return text


_Command = Callable[..., Any]


def guest_option(*, incoming: bool = False) -> Callable[[_Command], _Command]:
    """Return the option `--guest`, with the parameter name `guest_text`."""
    size = "[SIZE][,...]" if incoming else "SIZE[,...]"
    return click.option(
        "--guest", "guest_text", required=True, help=f"dir:PATH or synthetic:{size}"
    )


paused_option = click.option("--paused", is_flag=True, help="do not let the guest run")
announce_option = click.option(
    "--announce",
    "interfaces",
    multiple=True,
    type=interface,
    metavar="IFACE[=MAC]",
    help="where to tell that a guest which came runs here now (RARP); again for more",
)
