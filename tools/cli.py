"""The `vmferry` command: lists its subcommands, and imports the module of the one that runs.

Exit status: 0 for success, 1 for failure, 2 for wrong usage, 128 or more if a signal ended it.
Errors are one line on standard error.
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
"""The module of each subcommand. To start faster, only that of the running one is imported."""


class Commands(click.Group):
    """A click group that imports subcommands by COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all subcommands."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the subcommand with this name, or None."""
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
    # Signals may raise Interrupted from here on: the subcommand's module is imported already.
    if begin is not None:
        begin()
    # Names from streams may have characters that the terminal cannot encode.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    import_module(f"{__package__}.__main__").main()
