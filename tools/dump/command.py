"""Implements `dump --command`, which prints a command line that would accept the stream."""

from __future__ import annotations

import json
import shlex

from ...protocol import events
from ..console.text import echo
from ..machines.command_line import command_for
from ..machines.draft import Told
from ..machines.qemu_command import Command
from ..sources.containers import Opened
from ..sources.domain import domain_of
from ..sources.opening import opened_stream
from ..sources.stream_events import How, read_events

_UNPACK = {"zstd": "zstd -dc", "gzip": "gzip -dc", "bzip2": "bzip2 -dc", "xz": "xz -dc"}
"""The commands that write the content of a compressed file to standard output, by compression."""


def print_command(stream: str, *, as_json: bool, offset: int, length: int | None, how: How) -> None:
    """Print the command line. Any error in the stream ends the command."""
    with opened_stream(stream, offset, length=length) as opened:
        command = command_of(opened, stream, offset, how)
    if as_json:
        echo(json.dumps(command.as_json(), indent=2))
    else:
        echo(command.text())


def command_of(opened: Opened, name: str, offset: int, how: How) -> Command:
    """Return the command line for a stream at `name`, from `offset` on. Raises StreamError."""
    configuration, description = None, None
    blocks: tuple[events.RamBlock, ...] = ()
    sections: list[events.DeviceSection] = []
    for event in read_events(opened.stream, how):
        if isinstance(event, events.Configuration):
            configuration = event
        elif isinstance(event, events.RamBlocks):
            blocks = event.blocks
        elif isinstance(event, events.DeviceSection):
            sections.append(event)
        elif isinstance(event, events.Description):
            description = event
    told = Told(configuration, blocks, sections, description, domain_of(opened.image))
    mapped = any(block.mapped is not None for block in blocks)
    command = command_for(told, _incoming(opened, name, offset, mapped=mapped))
    if not _can_be_piped(opened, name):
        command.comments.append(
            "QEMU does not read the stream where it is: `vmferry convert` it to plain first."
        )
    if description is None:
        command.comments.append("The stream describes no devices: some may be missing here.")
    return command


def _can_be_piped(opened: Opened, name: str) -> bool:
    return name != "-" and (not opened.layers or opened.layers in {(key,) for key in _UNPACK})


def _incoming(opened: Opened, name: str, offset: int, *, mapped: bool) -> str:
    """Return the URI from which QEMU reads the stream."""
    if not _can_be_piped(opened, name):
        return "exec:cat STREAM"
    if mapped:
        return f"file:{name}" + (f",offset={offset}" if offset else "")
    unpack = _UNPACK[opened.layers[0]] if opened.layers else "cat"
    if offset:
        return f"exec:tail -c +{offset + 1} {shlex.quote(name)} | {unpack}"
    return f"exec:{unpack} {shlex.quote(name)}"
