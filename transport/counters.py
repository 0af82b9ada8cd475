"""Share named counters between processes: one process counts, others read."""

from __future__ import annotations

import mmap
import struct

from .shared import SharedFd

_VALUE = struct.Struct("<Q")


class Counters:
    """Counters of 64 bits in shared memory, each with one writer.

    They can be passed to child processes.
    """

    def __init__(self, names: tuple[str, ...], memory: SharedFd) -> None:
        self._names = names
        self._places = {name: number * _VALUE.size for number, name in enumerate(names)}
        self._memory = memory
        self._map: mmap.mmap | bytearray = memory.map(mmap.PAGESIZE)

    @classmethod
    def create(cls, names: tuple[str, ...]) -> Counters:
        """Return new counters, all 0."""
        return cls(names, SharedFd.memory("vmferry-counters", mmap.PAGESIZE))

    def __reduce__(self) -> tuple[type[Counters], tuple[tuple[str, ...], SharedFd]]:
        return Counters, (self._names, self._memory)

    def __getitem__(self, name: str) -> int:
        value: int = _VALUE.unpack_from(self._map, self._places[name])[0]
        return value

    def set(self, name: str, value: int) -> None:
        """Set a counter to a value."""
        _VALUE.pack_into(self._map, self._places[name], value)

    def add(self, name: str, amount: int) -> None:
        """Add to a counter; only its one writer may do so."""
        self.set(name, self[name] + amount)

    def close(self) -> None:
        """Release the shared memory; the values stay readable in this process."""
        shared, self._map = self._map, bytearray(self._map)
        # A mapping has a descriptor of its own.
        if isinstance(shared, mmap.mmap):
            shared.close()
        self._memory.close()
