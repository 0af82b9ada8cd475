"""Write the pages of a synthetic guest's memory, and find damaged ones.

A page holds its number + 1, the sequence number of its last write, words of its pattern, and in its
last word a checksum of all before. Every 16th write (with the pattern `zeroing`, every second)
leaves the page all zero instead, so sequence number 0 means that the page was never written. The
table of sequence numbers, which is migrated as device state and not as RAM, says what each page
must hold.
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
"""Pages that are written or checked at once."""
RAM_NAME, ROM_NAME = "synthetic.ram", "synthetic.rom"
ROM_SIZE = 1 << 20

_WORDS = PAGE_SIZE // 8
_POOL_PAGES = 4096
"""Pages that writes take their words from. The same words are in pages so far apart: farther than
zstd looks back at its faster levels, so that RAM does not compress by that.
"""
_VOCABULARY = 1 << 16
_LETTERS = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
_LONGEST_WORD = 7
"""Letters, at most, of a word of text, which with a space is one word of memory."""

PATTERNS = ("random", "text", "sparse", "zeroing", "edited")
"""Names of the patterns in which a guest writes its pages.

`random`: words without meaning. `text`: words of letters, some far more frequent than others.
`sparse`: the words of the write before except a few. `zeroing`: by turns zeros and the same words
again. `edited`: as `sparse`, in pages of text.
"""
TEXT_PATTERNS = ("text", "edited")
"""Patterns whose pages are text, so that they compress."""
_FEW_CHANGES = ("sparse", "zeroing", "edited")


class BadPage(NamedTuple):
    """A page with unexpected content.

    `reason` is "torn" (parts of different writes), "stale" (an older or newer write), "lost" (zero,
    but was written) or "foreign" (another page's content).
    """

    block: str
    page: int
    reason: str


class Memory:
    """The memory of a guest: RAM and ROM (u8), and the `table` of sequence numbers (u32).

    `name` is what bad pages of RAM are said to be in.
    """

    def __init__(
        self,
        ram: npt.NDArray[np.uint8],
        rom: npt.NDArray[np.uint8] | None,
        seed: int,
        pattern: str = PATTERNS[0],
        *,
        name: str = RAM_NAME,
    ) -> None:
        self._words = ram.view(np.uint64).reshape(-1, _WORDS)
        self._rom = None if rom is None else rom.reshape(-1, PAGE_SIZE)
        self._name = name
        self.table = np.zeros(len(self._words), np.uint32)
        self._random = np.random.default_rng(seed)
        self._pool: npt.NDArray[np.uint64] | None = None
        self._seed = seed
        self.pattern = ""
        self._zero_every = 0
        self.use(pattern, seed)

    def use(self, pattern: str, seed: int) -> None:
        """Write by this pattern from now on; the same seed gives the same words."""
        self.pattern = pattern
        self._zero_every = 2 if pattern == "zeroing" else 16
        # It takes up to 0.2 s to make, for which a guest that arrives must not be stopped.
        self._seed, self._pool = seed, None

    def _content(self) -> npt.NDArray[np.uint64]:
        """Return the pages (n, words) that writes take their words from."""
        if self._pool is None:
            random, shape = np.random.default_rng(self._seed), (_POOL_PAGES, _WORDS)
            words = random.integers(0, 1 << 63, shape, np.uint64)
            self._pool = _text(random, shape) if self.pattern in TEXT_PATTERNS else words
        return self._pool

    def fill(self, zero: float) -> None:
        """Write ROM, and every page of RAM once, except a fraction `zero` that stays zero."""
        if self._rom is not None:
            self._rom[:] = _rom_image()
        count = len(self.table)
        written = np.sort(self._random.permutation(count)[: round(count * (1 - zero))])
        for start in range(0, len(written), BATCH):
            self.write(written[start : start + BATCH])

    def write(self, numbers: npt.NDArray[np.intp]) -> None:
        """Write these pages again; a number must not occur twice."""
        sequence = self.table[numbers] + np.uint32(1)
        if self.pattern in _FEW_CHANGES:
            pages = self._content()[numbers % _POOL_PAGES]
            pages[np.arange(len(numbers)), 2 + sequence % (_WORDS - 3)] = sequence
        else:
            pages = self._content()[(numbers + sequence) % _POOL_PAGES]
        pages[:, 0] = numbers + 1
        pages[:, 1] = sequence
        pages[:, -1] = _checksums(pages)
        pages[sequence % self._zero_every == 0] = 0
        self._words[numbers] = pages
        self.table[numbers] = sequence

    def check(self, numbers: npt.NDArray[np.intp]) -> list[BadPage]:
        """Return those of these pages that do not match the table."""
        pages, expected = self._words[numbers], self.table[numbers]
        must_be_zero = expected % self._zero_every == 0
        is_zero = zero_mask(pages.view(np.uint8))
        whole = _checksums(pages) == pages[:, -1]
        own = pages[:, 0] == numbers.astype(np.uint64) + np.uint64(1)
        right = np.where(must_be_zero, is_zero, whole & own & (pages[:, 1] == expected))
        if right.all():
            return []
        reasons = np.select([is_zero, ~whole, ~own], ["lost", "torn", "foreign"], "stale")
        return [
            BadPage(self._name, int(numbers[i]), str(reasons[i])) for i in np.flatnonzero(~right)
        ]

    def check_all(self) -> list[BadPage]:
        """Return all pages of RAM and ROM that are not as they should be."""
        numbers = np.arange(len(self.table))
        bad = []
        for start in range(0, len(numbers), BATCH):
            bad += self.check(numbers[start : start + BATCH])
        if self._rom is None:
            return bad
        wrong = (self._rom != _rom_image()).any(axis=1)
        return bad + [BadPage(ROM_NAME, int(number), "torn") for number in np.flatnonzero(wrong)]


def _checksums(pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return np.array([xxh3_64_intdigest(page) for page in pages[:, :-1]], np.uint64)


def _text(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Return words of letters, padded with spaces, that are about as frequent as those of a text.

    The n-th word of the vocabulary has a frequency of about 1/n (Zipf's law), and so does
    the n-th letter in a word.
    """
    weights = 1 / np.arange(1, len(_LETTERS) + 1)
    words = _LETTERS[
        random.choice(len(_LETTERS), (_VOCABULARY, 8), p=weights / weights.sum())
    ].copy()
    lengths = random.integers(1, _LONGEST_WORD + 1, _VOCABULARY)
    words[np.arange(8) >= lengths[:, np.newaxis]] = ord(" ")
    ranks = np.power(float(_VOCABULARY), random.random(shape)).astype(np.intp) - 1
    vocabulary: npt.NDArray[np.uint64] = words.view(np.uint64).reshape(-1)
    return vocabulary[ranks]


def _rom_image() -> npt.NDArray[np.uint8]:
    """Return the ROM's content, (n, page size), which is the same with any library version.

    A destination compares the ROM that it received with the content that its own library makes.
    """
    image = hashlib.shake_128(ROM_NAME.encode()).digest(ROM_SIZE)
    return np.frombuffer(image, np.uint8).reshape(-1, PAGE_SIZE)
