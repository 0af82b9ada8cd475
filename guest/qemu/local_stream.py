"""Read the stream that a QEMU sends to this process: everything except the memory it shares.

The stream has the names, sizes and order of the RAM blocks, the contents of those that are not
shared (ROMs, video memory, tables), and the state of all devices.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...protocol import events
from ...protocol.devices.description import with_capabilities
from ...protocol.errors import StreamError
from ...protocol.reader import StreamReader
from ..parts import BlockLayout, DeviceSection, DeviceState, Machine
from .monitor import QemuError

IGNORE_SHARED = "x-ignore-shared"
"""Capability that leaves the memory out that QEMU shares."""
SILENCE = 60.0
"""Seconds that a QEMU may send nothing while it migrates to this process."""
_PIECE = 1 << 20
"""Bytes that are read at once."""

_WITHOUT_STATE = (
    events.Header,
    events.Command,
    events.EndOfRam,
    events.Footer,
    events.EndOfStream,
)

Pages = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Head:
    """The part of a QEMU's stream before its first page, which does not change while the guest
    runs.
    """

    machine: Machine
    early: tuple[DeviceSection, ...]
    ram_section_id: int
    blocks: tuple[BlockLayout, ...]


class LocalStream:
    """The stream that arrives on a socket; `pages` are the RAM blocks to fill, by name.

    Each is an array (n, page_size) that is all zero. Pages of other blocks are dropped.
    """

    def __init__(self, sock: socket.socket, pages: Mapping[str, Pages] | None = None) -> None:
        self._socket = sock
        sock.settimeout(SILENCE)
        self._pages = pages or {}
        self._reader = StreamReader(max_device_state=None)
        self._buffer = bytearray(2 * _PIECE)
        self._used = 0
        self._machine: events.Configuration | None = None
        self._section_id = 0
        self._blocks: events.RamBlocks | None = None
        self._early: list[DeviceSection] = []
        self._sections: list[DeviceSection] = []
        self._description: bytes | None = None

    def read_head(self) -> Head:
        """Read up to the list of RAM blocks. Raises QemuError if QEMU sends something else."""
        while self._blocks is None:
            if not self._read():
                raise QemuError("QEMU did not begin to migrate")
        return self.head

    def read_all(self) -> None:
        """Read the whole stream. Raises QemuError if it breaks off, or is none."""
        while self._read():
            continue
        try:
            self._take(self._reader.close())
        except StreamError as error:
            raise QemuError(f"what QEMU sent is no stream: {error}") from error
        if self._blocks is None:
            raise QemuError("QEMU did not begin to migrate")

    def _read(self) -> bool:
        """Read a piece; return False at the end."""
        view = memoryview(self._buffer)
        try:
            count = self._socket.recv_into(view[self._used :])
            self._used += count
            found, done = self._reader.parse(view[: self._used])
            self._take(found)
        except TimeoutError:
            raise QemuError(f"QEMU sent nothing for {SILENCE:.0f} s") from None
        except OSError as error:
            raise QemuError(f"what QEMU sends does not arrive: {error.strerror}") from error
        except StreamError as error:
            raise QemuError(f"what QEMU sent is no stream: {error}") from error
        self._buffer[: self._used - done] = self._buffer[done : self._used]
        self._used -= done
        return count > 0

    def _take(self, found: list[events.Event]) -> None:
        for event in found:
            if isinstance(event, events.PageRun):
                self._put(event)
            elif isinstance(event, events.Configuration):
                self._machine = event
            elif isinstance(event, events.RamSection):
                self._section_id = event.section_id
            elif isinstance(event, events.RamBlocks):
                self._blocks = event
            elif isinstance(event, events.DeviceSection):
                (self._sections if self._blocks else self._early).append(_section(event))
            elif isinstance(event, events.Description):
                self._description = event.text
            elif not isinstance(event, _WITHOUT_STATE):
                raise QemuError(f"{_what(event)} cannot be moved by ,scan: leave that out")

    def _put(self, run: events.PageRun) -> None:
        pages = self._pages.get(run.block.name)
        if pages is None:
            return
        numbers = (run.offsets // np.uint64(pages.shape[1])).astype(np.intp)
        if run.data is not None:
            pages[numbers] = run.data
        elif run.fill:
            pages[numbers] = run.fill

    @property
    def head(self) -> Head:
        """Return what was sent before the first page, once it has arrived. Raises QemuError."""
        assert self._blocks is not None
        if self._machine is None:
            raise QemuError("this machine type is too old: its streams do not name the machine")
        size = self._machine.page_size
        kept = tuple(name for name in self._machine.capabilities or () if name != IGNORE_SHARED)
        machine = Machine(
            name=self._machine.machine,
            page_size=size or self._reader.page_size,
            capabilities=kept or None,
            uuid=self._machine.uuid,
            page_bits_sent=size is not None,
        )
        blocks = tuple(
            BlockLayout(block.name, block.length, machine.page_size)
            for block in self._blocks.blocks
        )
        return Head(machine, tuple(self._early), self._section_id, blocks)

    @property
    def state(self) -> DeviceState:
        """Return the state of all devices, once all has arrived; it names no shared memory."""
        text = self._description
        if text is not None:
            kept = self.head.machine.capabilities or ()
            text = json.dumps(with_capabilities(json.loads(text), kept)).encode()
        return DeviceState(tuple(self._early), tuple(self._sections), text, self._section_id)


def _what(event: events.Event) -> str:
    """Return in words what an event brings that has no place in the state of the devices."""
    if isinstance(event, events.IterativeSection):
        return f"what QEMU sends in its section {event.name}"
    if isinstance(event, (events.NoFooters, events.UnsplitDevices)):
        return "a machine whose streams do not say where sections end"
    return f"what QEMU sends ({type(event).__name__})"


def _section(event: events.DeviceSection) -> DeviceSection:
    return DeviceSection(
        section_id=event.section_id,
        name=event.name,
        instance_id=event.instance_id,
        version=event.version,
        payload=event.payload,
    )
