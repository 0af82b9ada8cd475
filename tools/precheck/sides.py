"""Finds out what a user means by one side of a comparison, and reads the facts on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...guest.qemu import queries
from ...guest.qemu.monitor import Monitor
from ..console.failure import CommandError
from ..sources.opening import opened_stream
from ..sources.stream_events import How, read_events
from .facts import Facts, facts_of
from .twin.asking import capabilities_of, facts_of_program
from .twin.launch import Program

QEMU = "qemu:"
"""The beginning of a side that is a running QEMU; the path of its QMP socket follows."""


def facts_of_side(words: Sequence[str], how: How) -> Facts:
    """Return the facts on a side: a stream, `qemu:SOCKET`, or a command line in one or more words.

    Any error in a stream ends the command. Raises CommandError, VmferryError.
    """
    name = words[0]
    if len(words) > 1:
        return facts_of_program(Program(words))
    if name.startswith(QEMU):
        return _facts_of_running(name.removeprefix(QEMU))
    if " -" in name and not os.path.exists(name):
        return facts_of_program(Program(_split(name)))
    with opened_stream(name) as opened:
        return facts_of(read_events(opened.stream, how))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CommandError(f"{text}: {error}") from None


def _facts_of_running(path: str) -> Facts:
    """Return the facts on a running QEMU: those of a twin, but what the QEMU says of itself."""
    monitor = Monitor(path)
    try:
        program = program_of(monitor)
        blocks = queries.ram_blocks(monitor)
        capabilities = capabilities_of(monitor)
    finally:
        monitor.close()
    facts = facts_of_program(program)
    return replace(facts, blocks=blocks or facts.blocks, capabilities=capabilities)


def program_of(monitor: Monitor) -> Program:
    """Return the program of a running QEMU as it was started. Raises CommandError."""
    words = queries.command_line(monitor)
    folder = Path(f"/proc/{monitor.process}")
    try:
        environment = _variables((folder / "environ").read_bytes())
        directory = str((folder / "cwd").readlink())
    except OSError as error:
        words = []
        reason = error.strerror
    else:
        reason = "it is in another container, or a proxy is between"
    if not words:
        raise CommandError(
            f"{monitor.path}: how this QEMU was started cannot be seen ({reason}); give its command"
            " line instead"
        )
    return Program(words, str(folder / "exe"), environment, directory)


def _variables(data: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(each).partition("=") for each in data.split(b"\0") if each)
    return {name: value for name, _, value in pairs}
