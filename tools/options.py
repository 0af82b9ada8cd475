"""What several commands take as options: from text to values."""

from __future__ import annotations

import click

from ..control.announce import AnnounceError, Interface, parse_interface


def interface(text: str) -> Interface:
    """From `IFACE[=MAC]`."""
    try:
        return parse_interface(text)
    except AnnounceError as error:
        raise click.BadParameter(str(error)) from None
