"""Defines the command `ctl`, which executes QMP commands: parses options, sets the exit status."""

from __future__ import annotations

import json

import click

from ..client import ctl as ctl_command
from ..console.command import command
from ..console.failure import fail
from ..console.progress import Progress
from ..console.tables import readable


@command(
    "ctl a.sock query-status",
    "ctl a.sock migrate uri=tcp:127.0.0.1:7001",
    "ctl a.sock migrate-set-parameters max-bandwidth=100000000",
    "ctl a.sock watch",
)
@click.argument("socket", metavar="SOCKET", type=click.Path())
@click.argument("name", metavar="COMMAND|watch")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print the answer as the JSON that arrived")
def ctl(socket: str, name: str, pairs: tuple[str, ...], as_json: bool) -> None:
    """Send a QMP command to a QEMU or to `vmferry serve`, and print the answer.

    SOCKET is the path of the QMP socket, or HOST:PORT. COMMAND is any QMP command. A VALUE is read
    as JSON if it is valid JSON, and as text if not. A.B=VALUE sets the member B of an object A. An
    empty answer prints nothing.

    `watch` shows the progress of a migration until it ends. The exit status is 0 if it completed.
    """
    try:
        arguments = ctl_command.parse_arguments(pairs)
        if name == "watch" and arguments:
            raise ctl_command.ArgumentError("watch takes no arguments")
        if name == "watch":
            _watch(socket, as_json)
            return
        answer = ctl_command.execute(socket, name, arguments)
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
