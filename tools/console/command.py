"""Makes a function a command, whose help ends with the units of sizes and with examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .types import Size


class _Command(click.Command):
    """A command whose help says what a SIZE is, if an option or argument takes one."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the units of sizes, and the examples."""
        if any(param.type.name == Size.name for param in self.params):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(Size.units)
        super().format_epilog(ctx, formatter)


def command(*examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for the function of a command; `examples` are lines without `vmferry`."""
    # The first character keeps click from wrapping the lines.
    epilog = "\b\nExamples:\n" + "\n".join(f"  vmferry {line}" for line in examples)
    return click.command(cls=_Command, epilog=epilog)
