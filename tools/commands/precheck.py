"""Defines the command `precheck`, which says before a migration whether it would load."""

from __future__ import annotations

import json
import sys

import click

from ..console.command import command
from ..console.failure import describe, fail
from ..console.options import json_option
from ..console.stream_options import max_device_state_option, page_size_option
from ..console.text import echo


@command(
    "precheck guest.save qemu:/run/new.sock",
    "precheck guest.save -- qemu-system-x86_64 -M pc -m 2G -device virtio-net-pci",
    "precheck guest.save qemu:/run/new.sock --trial",
    "precheck qemu:/run/old.sock 'qemu-system-x86_64 -M pc -m 2G' --json",
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B...", nargs=-1, required=True, type=click.UNPROCESSED)
@json_option
@click.option(
    "--trial",
    is_flag=True,
    help="if nothing differs, also let the twin of B load the stream A, with all its memory",
)
@page_size_option
@max_device_state_option
def precheck(
    first: str,
    second: tuple[str, ...],
    as_json: bool,
    trial: bool,
    page_size: int | None,
    max_device_state: int | None,
) -> None:
    """Say whether the guest in A would load at B, and what to change if not.

    A and B are streams (whatever `dump` reads), qemu:SOCKET (a running QEMU with a QMP socket, also
    one that waits with -incoming defer), or command lines of a QEMU: quoted, or for B all words
    behind --. For a QEMU and for a command line, vmferry starts a twin: a paused QEMU with the same
    devices, but without their disks, networks and files, whose stream has the rest; no running
    guest is touched. What B's devices have beyond A's is a note. Exit status: 0 if A loads, 1 if it
    does not, or if one of them cannot be read.
    """
    # What reads a stream is slow to import, and wrong usage does not need it.
    from ...protocol.errors import VmferryError  # noqa: PLC0415
    from ..precheck.report import Report  # noqa: PLC0415
    from ..precheck.sides import is_stream, read_side, try_at  # noqa: PLC0415
    from ..sources.stream_events import How  # noqa: PLC0415

    if trial and (first == "-" or not is_stream((first,)) or is_stream(second)):
        raise click.UsageError("--trial: A has to be a stream in a file, and B a QEMU")
    how = How(page_size, max_device_state)
    try:
        a, b = read_side((first,), how), read_side(second, how)
        report = Report.of(a.facts, b.facts)
        if trial and report.loads:
            report = report.and_also(try_at(first, b))
    except VmferryError as error:
        fail(describe(error))
    if as_json:
        echo(json.dumps(report.as_json(), indent=2))
    else:
        report.print()
    if not report.loads:
        sys.exit(1)
