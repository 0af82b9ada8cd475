"""Makes the memory of both ends before a run, and checks after it that the guest arrived."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....guest.mapping import is_hole, map_block, populate
from ....guest.parts import RamBlock
from ....guest.synthetic_memory import PAGE_SIZE, ROM_SIZE
from ....guest.synthetic_memory import Memory as Pages
from ....transport.shared import SharedFd
from .cases import BenchError, Case

STEP = 16 << 20
"""Bytes that are compared at once."""
NAMES = ("vmferry-bench-source", "vmferry-bench-destination")
"""The names of the files in memory, which a list of mappings shows."""
SEED = 1


@dataclass(frozen=True)
class Memory:
    """RAM of both ends, in anonymous shared memory of `size` bytes each."""

    size: int
    source: SharedFd
    destination: SharedFd

    @classmethod
    def create(cls, case: Case) -> Memory:
        """Create the memory of a case: the bytes that a synthetic guest of these options has."""
        ends = [SharedFd.memory(name, case.size) for name in NAMES]
        memory = cls(case.size, *ends)
        source, destination = memory.ends()
        if case.content != "untouched":
            populate(source, write=True)
        if case.destination == "warm":
            populate(destination, write=True)
        if case.zero < 1 and case.content != "untouched":
            rom = np.empty(ROM_SIZE, np.uint8)
            Pages(source, rom, SEED, case.pattern).fill(case.zero)
        return memory

    def _blocks(self) -> list[RamBlock]:
        ends = (self.source, self.destination)
        return [RamBlock("pc.ram", self.size, PAGE_SIZE, shared.fileno()) for shared in ends]

    def ends(self) -> list[npt.NDArray[np.uint8]]:
        """Return source and destination as arrays of bytes."""
        return [map_block(block) for block in self._blocks()]

    def check(self) -> None:
        """Raise BenchError if the destination does not equal the source."""
        if all(is_hole(block, 0, self.size) for block in self._blocks()):
            return
        source, destination = self.ends()
        for start in range(0, self.size, STEP):
            end = start + STEP
            if not np.array_equal(source[start:end], destination[start:end]):
                raise BenchError(f"the memories differ in the {STEP >> 20} MiB at {start:#x}")

    def close(self) -> None:
        """Release the memory."""
        self.source.close()
        self.destination.close()
