"""The `vmferry` command: lists its subcommands, and imports the module of the one that runs.

Exit status: 0 for success, 1 for failure, 2 for wrong usage, 128 or more if a signal ended it.
Errors are one line on standard error.
"""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "bench": "Measure migrations over loopback TCP, in turns with those of a QEMU.",
    "convert": "Write the stream IN into another container, OUT (- for standard output).",
    "ctl": "Send a QMP command to a QEMU or to `vmferry serve`, and print the answer.",
    "demo": "Migrate a busy guest between two groups of processes over TCP, and verify its memory.",
    "diff": "Show how the guests in the streams A and B differ.",
    "dump": "Show what a stream holds: its machine, RAM, rounds and devices.",
    "extract": "Extract a guest's RAM, devices and disks from a stream.",
    "precheck": "Say whether the guest in A would load at B, and what to change if not.",
    "receive": "Receive a guest from URI, and let it run.",
    "relay": "Pass migrations of QEMUs over a link that compresses and survives a cut.",
    "send": "Send a guest to URI, while it runs.",
    "serve": "Keep a guest running, and send or receive it when a QMP client says so.",
    "verify": "Check that a stream is complete and valid, and compare its RAM.",
}
"""The subcommands, each in the module of `commands` with its name, and the job of each in a line.

To start faster, only the module of the running subcommand is imported, and none to list them.
"""


class Commands(click.Group):
    """A click group that imports subcommands by COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all subcommands."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Return the subcommand with this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".commands.{cmd_name}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the subcommands and options that begin so, without importing any module."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - for shells alone

        found = [
            CompletionItem(name, help=job)
            for name, job in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found or click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that the arguments name. Raises UsageError with similar names."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            # Only this error needs the module.
            from difflib import get_close_matches  # noqa: PLC0415

            similar = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the list of subcommands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


_EPILOG = """\b
Completion by the shell, in ~/.bashrc (for zsh and fish: zsh_source, fish_source):
  eval "$(_VMFERRY_COMPLETE=bash_source vmferry)"
"""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(None, "-V", "--version", package_name="vmferry")
@click.pass_obj
def main(begin: Callable[[], None] | None) -> None:
    """Live migration of virtual machines, on QEMU's own wire format."""
    # Signals may raise Interrupted from here on: the subcommand's module is imported already.
    if begin is not None:
        begin()
    # What was imported stays until the end: no collection has to go through it, not even the last.
    gc.freeze()
    gc.enable()
    # Names from streams may have characters that the terminal cannot encode.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    import_module(f"{__package__}.__main__").main()
