"""Makes a function a command, whose help ends with the units of sizes and with examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from .types import Size

Groups = Mapping[str, Sequence[str]]
"""Titles in the help of a command, each with the names of the parameters below it."""


class _Command(click.Command):
    """A command with groups of options in its help, which also says what a SIZE is."""

    def __init__(self, *args: Any, groups: Groups, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that are in no group, and then each group."""
        # The text of the help explains the arguments.
        options = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        lines = {option.name: option.get_help_record(ctx) for option in options}
        groups = {
            title: [lines.pop(name) for name in names] for title, names in self._groups.items()
        }
        for title, records in {"Options": list(lines.values()), **groups}.items():
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the units of sizes, and the examples."""
        if any(param.type.name == Size.name for param in self.params):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(Size.units)
        super().format_epilog(ctx, formatter)


def command(
    *examples: str, groups: Groups | None = None
) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for the function of a command; `examples` are lines without `vmferry`."""
    # The first character keeps click from wrapping the lines.
    epilog = "\b\nExamples:\n" + "\n".join(f"  vmferry {line}" for line in examples)
    return click.command(cls=_Command, epilog=epilog, groups=groups or {})
