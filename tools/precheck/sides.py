"""Finds out what a user means by one side of a comparison, and reads the facts on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...guest.qemu import queries
from ...guest.qemu.monitor import Monitor
from ...protocol.reading.configuration import MAPPED_RAM
from ..console.failure import CommandError
from ..sources.opening import opened_stream
from ..sources.stream_events import How, read_events
from .facts import Facts, facts_of
from .findings import Finding, Kind
from .rules import CHECKED
from .twin.asking import capabilities_of, facts_of_program
from .twin.launch import Program
from .twin.trial import trial

QEMU = "qemu:"
"""The beginning of a side that is a running QEMU; the path of its QMP socket follows."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its facts, and the QEMU that they are of, or None for a stream."""

    facts: Facts
    program: Program | None = None


def is_stream(words: Sequence[str]) -> bool:
    """Return whether a side is a stream."""
    return len(words) == 1 and not words[0].startswith(QEMU) and not _is_command(words[0])


def _is_command(text: str) -> bool:
    return " -" in text and not os.path.exists(text)


def read_side(words: Sequence[str], how: How) -> Side:
    """Return the facts on a stream, `qemu:SOCKET`, or a command line in one or more words.

    Any error in a stream ends the command. Raises CommandError, VmferryError.
    """
    name = words[0]
    if len(words) == 1 and name.startswith(QEMU):
        return _running(name.removeprefix(QEMU))
    if not is_stream(words):
        program = Program(words if len(words) > 1 else _split(name))
        return Side(facts_of_program(program), program)
    with opened_stream(name) as opened:
        return Side(facts_of(read_events(opened.stream, how)))


def try_at(stream: str, there: Side) -> list[Finding]:
    """Return what a twin of a QEMU says that loads a stream: nothing if it loads it.

    Any error in the stream ends the command. Raises CommandError, VmferryError.
    """
    assert there.program is not None
    switched = there.facts.capabilities.intersection(CHECKED)
    if MAPPED_RAM in switched:
        return [Finding(Kind.UNCHECKED, MAPPED_RAM, detail="no trial of a mapped-ram file")]
    with opened_stream(stream) as opened:
        refusal = trial(there.program, opened.stream, switched)
    if refusal is None:
        return []
    return [Finding(Kind.REFUSED, refusal.device or "trial", detail=refusal.reason)]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CommandError(f"{text}: {error}") from None


def _running(path: str) -> Side:
    """Return the facts on a running QEMU: those of a twin, but what the QEMU says of itself."""
    monitor = Monitor(path)
    try:
        program = program_of(monitor)
        blocks = queries.ram_blocks(monitor)
        capabilities = capabilities_of(monitor)
    finally:
        monitor.close()
    facts = facts_of_program(program)
    told = replace(facts, blocks=blocks or facts.blocks, capabilities=capabilities)
    return Side(told, program)


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
