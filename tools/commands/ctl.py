"""Defines the command `ctl`, which executes QMP commands: parses options, sets the exit status."""

from __future__ import annotations

import json

import click

from ..client import ctl as ctl_command
from ..console.examples import examples
from ..console.failure import fail
from ..console.progress import Progress
from ..console.tables import readable


@click.command(
    epilog=examples(
        "ctl a.sock query-status", "ctl a.sock migrate uri=tcp:127.0.0.1:7001", "ctl a.sock watch"
    )
)
@click.argument("socket", metavar="SOCKET")
@click.argument("command", metavar="COMMAND|watch")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print the answer as it came")
def ctl(socket: str, command: str, pairs: tuple[str, ...], as_json: bool) -> None:
    """Give the QMP command COMMAND to a QEMU, or to a service, and print the answer.

    SOCKET is the path of its QMP socket, or HOST:PORT. A VALUE that is JSON is taken as that, any
    other as text; A.B=VALUE is a member of an object. An answer that holds nothing prints nothing.

    `watch` shows the progress of a migration until it ends; exit status 0 if it completed.
    """
    try:
        arguments = ctl_command.parse_arguments(pairs)
        if command == "watch" and arguments:
            raise ctl_command.ArgumentError("watch takes no arguments")
        if command == "watch":
            _watch(socket, as_json)
            return
        answer = ctl_command.execute(socket, command, arguments)
    except ctl_command.ArgumentError as error:
        raise click.UsageError(str(error)) from None
    except ctl_command.CtlError as error:
        fail(str(error))
    for line in (json.dumps(answer),) if as_json else readable(answer):
        click.echo(line)


def _watch(socket: str, as_json: bool) -> None:
    with Progress("migrating") as progress:
        answer = ctl_command.watch(socket, progress)
        if completed := answer["status"] == "completed":
            progress.say(ctl_command.outcome(answer))
    if as_json:
        click.echo(json.dumps(answer))
    if not completed:
        fail(ctl_command.outcome(answer))
