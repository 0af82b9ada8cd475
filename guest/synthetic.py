"""`synthetic:SIZE[,option=value...]`: a process that keeps writing its own memory.

Every page that it writes says which page it is, the sequence number of the write, and a checksum;
the process keeps the sequence numbers in a table, which is its device state. So a page that
arrives torn, stale, or in the wrong place is found at the destination.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from multiprocessing import reduction
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from .base import (
    BlockLayout,
    DeviceSection,
    DeviceState,
    Guest,
    GuestError,
    Machine,
    RamBlock,
    map_block,
)
from .sizes import parse_size
from .synthetic_process import PAGE_SIZE, BadPage, run

RAM_NAME, ROM_NAME = "synthetic.ram", "synthetic.rom"
ROM_SIZE = 1 << 20
RAM_SECTION_ID = 2
DEVICE_NAME = "synthetic"


@dataclass(frozen=True)
class Options:
    """`size` 0: take the size of the incoming guest. Sizes in bytes, rates in bytes a second.

    `hot`: how much of RAM is written over and over; `zero`: fraction of RAM that starts as zero;
    `heartbeat`: a file that gets the write counter every 100 ms; `orphan`: seconds that the guest
    lives on when its controller dies.
    """

    size: int = 0
    dirty_rate: int = 0
    hot: int = 0
    zero: float = 0.25
    seed: int = 1
    heartbeat: str = ""
    orphan: float = 30.0


def _parse_fraction(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a fraction")
    return value


_PARSERS = {
    "dirty-rate": parse_size,
    "hot": parse_size,
    "zero": _parse_fraction,
    "seed": int,
    "heartbeat": str,
    "orphan": float,
}


def parse_options(text: str) -> Options:
    """Raises GuestError that names the option and lists the known ones."""
    size, *pairs = text.split(",")
    values: dict[str, Any] = {}
    try:
        values["size"] = parse_size(size) if size else 0
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name not in _PARSERS:
                known = ", ".join(_PARSERS)
                raise GuestError(f"synthetic: unknown option {name!r}; known are {known}")
            values[name.replace("-", "_")] = _PARSERS[name](value)
    except ValueError as error:
        raise GuestError(f"synthetic: {error}") from error
    if values["size"] % PAGE_SIZE:
        raise GuestError(f"synthetic: the size is not a multiple of {PAGE_SIZE}")
    return Options(**values)


class SyntheticGuest(Guest):
    """The controller's side; the process is in `synthetic_process`."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._blocks: tuple[RamBlock, ...] = ()
        self._process: Any = None
        self._connection: Any = None
        self._running = False
        if options.size:
            self._make(options.size)
            self._start(None)
            self._command("resume")
            self._running = True
        atexit.register(self.close)

    @classmethod
    def parse(cls, text: str) -> SyntheticGuest:
        """From what stands behind `synthetic:`."""
        return cls(parse_options(text))

    def _make(self, size: int) -> None:
        made = []
        for name, length in ((RAM_NAME, size), (ROM_NAME, ROM_SIZE)):
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(fd, length)
            made.append(RamBlock(name, length, PAGE_SIZE, fd))
        self._blocks = tuple(made)

    def _start(self, state: bytes | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        settings = {f.name: getattr(self._options, f.name) for f in fields(Options)}
        self._process = context.Process(
            target=run,
            name="vmferry-guest",
            args=(theirs, _Descriptors([b.fd for b in self._blocks]), settings, state),
        )
        self._process.start()
        theirs.close()
        self._answer()

    def _command(self, name: str) -> Any:
        try:
            self._connection.send(name)
        except OSError as error:
            raise GuestError("synthetic: the guest process died") from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise GuestError("synthetic: the guest process died") from error
        if isinstance(answer, GuestError):
            raise answer
        return answer

    @property
    def machine(self) -> Machine:
        """`synthetic-1`."""
        return Machine("synthetic-1", PAGE_SIZE)

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """RAM that is written, and a ROM that is not."""
        return self._blocks

    @property
    def running(self) -> bool:
        """Whether the process writes."""
        return self._running

    @property
    def pid(self) -> int:
        """The guest's process."""
        pid: int = self._process.pid
        return pid

    def pause(self) -> None:
        """On return the process stands between two writes."""
        self._command("pause")
        self._running = False
        self._notify("stop")

    def resume(self) -> None:
        """Write on."""
        self._command("resume")
        self._running = True
        self._notify("resume")

    def commit(self) -> None:
        """See Guest."""
        self._command("commit")

    def save_devices(self) -> DeviceState:
        """One section: the table of sequence numbers."""
        payload: bytes = self._command("save")
        section = DeviceSection(RAM_SECTION_ID + 1, DEVICE_NAME, 0, 1, payload)
        data = {"name": "data", "type": "buffer", "size": len(payload)}
        device = {
            "name": DEVICE_NAME,
            "instance_id": 0,
            "vmsd_name": DEVICE_NAME,
            "version": 1,
            "fields": [data],
        }
        description = json.dumps({"page_size": PAGE_SIZE, "devices": [device]}).encode()
        return DeviceState((), (section,), description, RAM_SECTION_ID)

    def prepare(self, machine: Machine, blocks: Sequence[BlockLayout]) -> None:
        """An own process that runs already is no place for another guest."""
        if self._process is not None:
            raise GuestError("synthetic: a guest of this size runs already; receive with no size")
        if machine.name != self.machine.name:
            raise GuestError(f"synthetic: cannot be a {machine.name!r} machine")
        names = [block.name for block in blocks]
        if names != [RAM_NAME, ROM_NAME] or blocks[1].length != ROM_SIZE:
            raise GuestError(f"synthetic: RAM blocks {names} are not a synthetic guest's")
        self._make(blocks[0].length)

    def load_devices(self, machine: Machine, state: DeviceState) -> None:
        """Start the process, paused, with the table."""
        names = [(s.name, s.version) for s in (*state.early, *state.sections)]
        if names != [(DEVICE_NAME, 1)]:
            raise GuestError(f"synthetic: device sections {names} are not a synthetic guest's")
        self._start(state.sections[0].payload)

    def invalidate_caches(self) -> None:
        """Nothing is cached."""

    def complete(self, *, running: bool) -> None:
        """See Guest."""
        if running:
            self.resume()

    def abort_incoming(self) -> None:
        """See Guest."""
        self.close()

    def counter(self) -> int:
        """Pages written so far, over all its life."""
        count: int = self._command("counter")
        return count

    def verify(self) -> list[BadPage]:
        """Pages that are not what the table says; pause it first."""
        bad: list[BadPage] = self._command("verify")
        return bad

    def page_digests(self) -> npt.NDArray[np.uint64]:
        """(n,) u64, xxh3-64 of every page of every block; pause it first."""
        digests = []
        for block in self._blocks:
            pages = map_block(block).reshape(-1, PAGE_SIZE)
            digests.append(np.fromiter(map(xxh3_64_intdigest, pages), np.uint64, len(pages)))
        return np.concatenate(digests)

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        if self._process is not None:
            try:
                self._connection.send("quit")
            except OSError:
                # It died before; what is left is to reap it.
                self._running = False
            self._process.join()
            self._process.close()
            self._connection.close()
            self._process = None
        for block in self._blocks:
            os.close(block.fd)
        self._blocks = ()


@dataclass(frozen=True)
class _Descriptors:
    """Descriptors that arrive as duplicates in a spawned process, as a list of numbers."""

    numbers: list[int] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, ([reduction.DupFd(number) for number in self.numbers],)


def _receive(duplicates: list[Any]) -> list[int]:
    return [duplicate.detach() for duplicate in duplicates]
