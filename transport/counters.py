"""Named counters in shared memory: one process counts, others look."""

from __future__ import annotations

import mmap
import struct

from .shared import SharedFd

_VALUE = struct.Struct("<Q")


class Counters:
    """u64 counters; each has one writer. Survives being passed to a spawned process."""

    def __init__(self, names: tuple[str, ...], memory: SharedFd) -> None:
        self._names = names
        self._places = {name: number * _VALUE.size for number, name in enumerate(names)}
        self._memory = memory
        self._map: mmap.mmap | bytearray = memory.map(mmap.PAGESIZE)

    @classmethod
    def create(cls, names: tuple[str, ...]) -> Counters:
        """New counters, all 0."""
        return cls(names, SharedFd.memory("vmferry-counters", mmap.PAGESIZE))

    def __reduce__(self) -> tuple[type[Counters], tuple[tuple[str, ...], SharedFd]]:
        return Counters, (self._names, self._memory)

    def __getitem__(self, name: str) -> int:
        value: int = _VALUE.unpack_from(self._map, self._places[name])[0]
        return value

    def set(self, name: str, value: int) -> None:
        """Give a counter a value."""
        _VALUE.pack_into(self._map, self._places[name], value)

    def add(self, name: str, amount: int) -> None:
        """Count up; only the counter's one writer may."""
        self.set(name, self[name] + amount)

    def close(self) -> None:
        """Give up the shared memory; the values stay readable in this process."""
        shared, self._map = self._map, bytearray(self._map)
        # A mapping has a descriptor of its own.
        if isinstance(shared, mmap.mmap):
            shared.close()
        self._memory.close()
