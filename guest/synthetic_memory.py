"""The memory of a synthetic guest: how its pages are written, and how a damaged one is found.

A page holds its number + 1, the sequence number of its last write, words of its pattern, and in its
last word a checksum of all before. Every 16th write (by the pattern `zeroing`, every second) leaves
the page all zero instead, so the sequence number 0 means that it was never written. The table of
sequence numbers, which travels as device state and not as RAM, says what each page must hold.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from .zero import zero_mask

PAGE_SIZE = 4096
BATCH = 64
"""Pages written or checked at once."""
RAM_NAME, ROM_NAME = "synthetic.ram", "synthetic.rom"
ROM_SIZE = 1 << 20

_WORDS = PAGE_SIZE // 8
_POOL_PAGES = 256
_SYLLABLES = 64

PATTERNS = ("random", "text", "sparse", "zeroing")
"""What a write leaves: words of no meaning; words that repeat, as text; the words of the write
before but for a few; or by turns nothing and the same words again."""
_FEW_CHANGES = ("sparse", "zeroing")


class BadPage(NamedTuple):
    """A page that is not as it should be.

    `reason`: "torn" (parts of different writes), "stale" (an older or newer write), "lost" (zero,
    but was written), "foreign" (another page's content).
    """

    block: str
    page: int
    reason: str


class Memory:
    """RAM (bytes, u8), ROM (bytes, u8), and the u32 `table` of sequence numbers."""

    def __init__(
        self,
        ram: npt.NDArray[np.uint8],
        rom: npt.NDArray[np.uint8],
        seed: int,
        pattern: str = PATTERNS[0],
    ) -> None:
        self._words = ram.view(np.uint64).reshape(-1, _WORDS)
        self._rom = rom.reshape(-1, PAGE_SIZE)
        self.table = np.zeros(len(self._words), np.uint32)
        self._random = np.random.default_rng(seed)
        self._pool = np.empty((_POOL_PAGES, _WORDS), np.uint64)
        self.pattern = ""
        self._zero_every = 0
        self.use(pattern, seed)

    def use(self, pattern: str, seed: int) -> None:
        """Write by this pattern from now on, as every guest of this seed does."""
        self.pattern = pattern
        self._zero_every = 2 if pattern == "zeroing" else 16
        random = np.random.default_rng(seed)
        self._pool[:] = random.integers(0, 1 << 63, self._pool.shape, np.uint64)
        if pattern == "text":
            syllables = self._pool[0, :_SYLLABLES].copy()
            self._pool[:] = random.choice(syllables, self._pool.shape)

    def fill(self, zero: float) -> None:
        """Write ROM, and every page of RAM once, but for a fraction that stays zero."""
        self._rom[:] = _rom_image()
        count = len(self.table)
        written = np.sort(self._random.permutation(count)[: round(count * (1 - zero))])
        for start in range(0, len(written), BATCH):
            self.write(written[start : start + BATCH])

    def write(self, numbers: npt.NDArray[np.intp]) -> None:
        """Write these pages anew; no number comes twice."""
        sequence = self.table[numbers] + np.uint32(1)
        if self.pattern in _FEW_CHANGES:
            pages = self._pool[numbers % _POOL_PAGES]
            pages[np.arange(len(numbers)), 2 + sequence % (_WORDS - 3)] = sequence
        else:
            pages = self._pool[(numbers + sequence) % _POOL_PAGES]
        pages[:, 0] = numbers + 1
        pages[:, 1] = sequence
        pages[:, -1] = _checksums(pages)
        pages[sequence % self._zero_every == 0] = 0
        self._words[numbers] = pages
        self.table[numbers] = sequence

    def check(self, numbers: npt.NDArray[np.intp]) -> list[BadPage]:
        """Which of these pages are not as the table says."""
        pages, expected = self._words[numbers], self.table[numbers]
        must_be_zero = expected % self._zero_every == 0
        is_zero = zero_mask(pages.view(np.uint8))
        whole = _checksums(pages) == pages[:, -1]
        own = pages[:, 0] == numbers.astype(np.uint64) + np.uint64(1)
        right = np.where(must_be_zero, is_zero, whole & own & (pages[:, 1] == expected))
        if right.all():
            return []
        reasons = np.select([is_zero, ~whole, ~own], ["lost", "torn", "foreign"], "stale")
        return [BadPage(RAM_NAME, int(numbers[i]), str(reasons[i])) for i in np.flatnonzero(~right)]

    def check_all(self) -> list[BadPage]:
        """Every page of RAM and ROM."""
        numbers = np.arange(len(self.table))
        bad = []
        for start in range(0, len(numbers), BATCH):
            bad += self.check(numbers[start : start + BATCH])
        wrong = (self._rom != _rom_image()).any(axis=1)
        return bad + [BadPage(ROM_NAME, int(number), "torn") for number in np.flatnonzero(wrong)]


def _checksums(pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return np.array([xxh3_64_intdigest(page) for page in pages[:, :-1]], np.uint64)


def _rom_image() -> npt.NDArray[np.uint8]:
    """(n, page size); the same with any version of any library, because it never travels twice."""
    image = hashlib.shake_128(ROM_NAME.encode()).digest(ROM_SIZE)
    return np.frombuffer(image, np.uint8).reshape(-1, PAGE_SIZE)
