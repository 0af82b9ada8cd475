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


_OUT = "dir:PATH or synthetic:SIZE[,...]"
_IN = "dir:PATH or synthetic:"
_Command = Callable[..., Any]


def guest_option(*, incoming: bool = False) -> Callable[[_Command], _Command]:
    """Return the option `--guest`, with the parameter name `guest_text`.

    The help text of an `incoming` guest has no size, because the guest arrives with its size.
    """
    return click.option("--guest", "guest_text", required=True, help=_IN if incoming else _OUT)


paused_option = click.option("--paused", is_flag=True, help="do not let the guest run")
announce_option = click.option(
    "--announce",
    "interfaces",
    multiple=True,
    type=interface,
    metavar="IFACE[=MAC]",
    help="where to tell that a guest which came runs here now (RARP); again for more",
)
