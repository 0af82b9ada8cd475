"""Reads the facts on a QEMU from the stream of a twin, whose devices are as at its start."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ....guest.qemu import queries
from ....guest.qemu.monitor import Monitor, QemuError
from ...sources.stream_events import read_events
from ..device_types import DeviceTypes, read_types
from ..facts import Facts, facts_of
from ..pci_space import Bars
from .launch import Program, Twin, started

_NO_LIMIT = 1 << 50
"""Bytes per second of a migration that nothing slows down."""
_DUMP = 60.0
"""Seconds that a QEMU has to list its device types."""
_OUT = "vmferry-out"


def facts_of_program(program: Program) -> Facts:
    """Return the facts on the QEMU that a program line starts. Raises TwinError, StreamError."""
    with started(program) as twin:
        facts = _stream_facts(twin)
        blocks = queries.ram_blocks(twin.monitor)
        return replace(
            facts,
            blocks=blocks or facts.blocks,
            capabilities=capabilities_of(twin.monitor),
            types=_types(program),
            bars=_bars(twin.monitor),
        )


def capabilities_of(monitor: Monitor) -> frozenset[str]:
    """Return the migration capabilities that are switched on at a QEMU."""
    told = monitor.ask("query-migrate-capabilities")
    return frozenset(each["capability"] for each in told if each["state"])


def _stream_facts(twin: Twin) -> Facts:
    """Return the facts in the stream that a twin writes when it migrates into a pipe."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source:
        try:
            twin.monitor.ask("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
            twin.monitor.give(_OUT, write)
        finally:
            os.close(write)
        twin.monitor.ask("migrate", uri=f"fd:{_OUT}")
        return facts_of(read_events(source))


def _bars(monitor: Monitor) -> dict[str, Bars]:
    """Return the sizes of the regions of the PCI devices on the first bus."""
    try:
        buses = monitor.ask("query-pci")
    except QemuError:
        # Some machines have no PCI bus.
        return {}
    found: dict[str, Bars] = {}
    for device in (device for bus in buses for device in bus["devices"]):
        path = f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"
        found[path] = {region["bar"]: region["size"] for region in device["regions"]}
    return found


def _types(program: Program) -> DeviceTypes | None:
    """Return what the QEMU says of its device types, or None if it does not."""
    with tempfile.NamedTemporaryFile(prefix="vmferry-") as file:
        words = [program.name, *_machine(program), "-dump-vmstate", file.name]
        try:
            subprocess.run(
                words,
                executable=program.executable,
                env=program.environment,
                cwd=program.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_DUMP,
                check=True,
            )
            told = json.loads(Path(file.name).read_bytes())
        except (OSError, ValueError, subprocess.SubprocessError):
            # Everything else is compared all the same.
            return None
    return read_types(told) if isinstance(told, dict) else None


def _machine(program: Program) -> list[str]:
    """Return the options that choose the machine and the places of its files."""
    words = [f"-{word.lstrip('-')}" if word.startswith("-") else word for word in program.words]
    kept = ("-M", "-machine", "-L")
    return [each for pair in pairwise(words[1:]) if pair[0] in kept for each in pair]
