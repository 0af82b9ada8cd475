"""Defines options that commands which move guests share, and converts their text to values."""

from __future__ import annotations

import click

from ...control.announce import AnnounceError, Interface, parse_interface
from ...transport.compression import CompressionError, parse_compression
from .types import GuestText


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


guest_option = click.option(
    "--guest",
    "guest_text",
    required=True,
    type=GuestText(),
    help="dir:PATH, a guest kept in a folder; synthetic:SIZE[,OPTION=VALUE]..., a process that"
    " writes its own memory, such as synthetic:512M,dirty-rate=50M (SIZE may be left out where the"
    " guest is to arrive); or qemu:PATH, the guest of a QEMU with a QMP monitor at that socket,"
    " which moves it, and qemu:PATH,scan, one whose shared memory vmferry moves by itself",
)
paused_option = click.option(
    "--paused", is_flag=True, help="leave the guest stopped when it has arrived"
)
announce_option = click.option(
    "--announce",
    "interfaces",
    multiple=True,
    type=interface,
    metavar="IFACE[=MAC]",
    help="network interface on which to announce, by RARP frames, that the guest now runs here;"
    " repeat for more",
)
