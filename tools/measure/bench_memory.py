"""The memory that `vmferry bench` migrates: fills it, and checks that it arrived."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...guest.base import RamBlock, is_hole, map_block, populate
from ...protocol.errors import VmferryError
from ...transport.shared import SharedFd

STEP = 16 << 20
CONTENTS = ("random", "zero", "untouched", "text")
BLOCK = "pc.ram"


class BenchError(VmferryError):
    """Raised if a run fails or has a wrong result; the message is one line."""


@dataclass(frozen=True)
class Memory:
    """The RAM of both ends, in anonymous shared memory.

    `content` is `random` (random bytes), `zero` (zero pages that exist), `untouched` (pages that do
    not exist) or `text` (half of each page is random bytes, half is words out of a few hundred, in
    random order).
    """

    content: str
    size: int
    source: SharedFd
    destination: SharedFd

    @classmethod
    def create(cls, content: str, size: int) -> Memory:
        """Create the memory as it is before the first run."""
        ends = [SharedFd.memory(f"vmferry-bench-{end}", size) for end in ("source", "destination")]
        memory = cls(content, size, *ends)
        if content != "untouched":
            for ram in memory.ends():
                populate(ram, write=True)
        if content in FILLERS:
            ram, _ = memory.ends()
            generator = np.random.default_rng(1)
            for start in range(0, size, STEP):
                piece = ram[start : start + STEP]
                piece[:] = FILLERS[content](generator, len(piece))
        return memory

    def _blocks(self) -> list[RamBlock]:
        ends = (self.source, self.destination)
        return [RamBlock(BLOCK, self.size, 4096, shared.fileno()) for shared in ends]

    def ends(self) -> list[npt.NDArray[np.uint8]]:
        """Return source and destination as arrays of bytes."""
        return [map_block(block) for block in self._blocks()]

    def prepare_run(self) -> None:
        """Reset the memory before a run, so that there is data to migrate.

        Random and text pages are changed at the destination; untouched pages are removed at both
        ends.
        """
        if self.content == "untouched":
            for shared in (self.source, self.destination):
                os.ftruncate(shared.fileno(), 0)
                os.ftruncate(shared.fileno(), self.size)
        elif self.content in FILLERS:
            _, ram = self.ends()
            ram.reshape(-1, 4096)[:, 0] ^= 0xFF

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


def _random(generator: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(generator.bytes(size), np.uint8)


def _text(generator: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """Return pages of half text and half random bytes; `size` is a multiple of the page size."""
    alphabet = np.frombuffer(b"etaoinshrdlucmfw", np.uint8)
    words = [
        alphabet[generator.integers(0, len(alphabet), count)].tobytes()
        for count in generator.integers(2, 10, 400)
    ]
    # Zipf's law describes the frequency of words in natural language.
    ranks = generator.zipf(1.3, size // 8) % len(words)
    letters = b" ".join([words[rank] for rank in ranks.tolist()])[: size // 2]
    pages = _random(generator, size).reshape(-1, 4096).copy()
    pages[:, :2048] = np.frombuffer(letters.ljust(size // 2), np.uint8).reshape(-1, 2048)
    return pages.reshape(-1)


FILLERS: dict[str, Callable[[np.random.Generator, int], npt.NDArray[np.uint8]]] = {
    "random": _random,
    "text": _text,
}
