"""The `vmferry` command: the names of what it does; options are read and work is done elsewhere.

Exit status: 0 done, 1 it failed, 2 wrong usage, 128 and more: a signal ended it. Errors are one
line on standard error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import import_module

import click

COMMANDS = {
    "bench": "migrate",
    "convert": "extract",
    "ctl": "ctl",
    "demo": "migrate",
    "diff": "streams",
    "dump": "dump",
    "extract": "extract",
    "receive": "migrate",
    "send": "migrate",
    "serve": "serve",
    "verify": "streams",
}
"""Where each is defined. Nothing is imported but for the one that runs: it is there sooner."""


class Commands(click.Group):
    """Finds them by COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in order."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = import_module(f".commands.{COMMANDS[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=Commands)
@click.version_option(package_name="vmferry")
@click.pass_obj
def main(begin: Callable[[], None] | None) -> None:
    """Live migration of virtual machines, on QEMU's own wire format."""
    # The module of the command has been imported.
    if begin is not None:
        begin()
    # Names come from streams; a terminal that lacks a character must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    import_module(f"{__package__}.__main__").main()
