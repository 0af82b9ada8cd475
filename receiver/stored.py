"""A stored zstd frame read straight from the channel into a slot: nothing is copied on the way.

Where its blocks end is known beforehand, if they are as `protocol.zstd.stored` lays them out; the
block headers go aside, and are compared as they come: a frame that is laid out otherwise may be
shorter, and must not be waited for.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..protocol.formats import zstd
from .slots import DATA_START

Slot: TypeAlias = npt.NDArray[np.uint8]


class StoredFrame:
    """A frame that holds `size` bytes, of which the first on the wire have arrived already."""

    def __init__(self, slot: Slot, size: int, arrived: memoryview) -> None:
        self.slot = slot
        self.size = size
        content = slot.data[DATA_START : DATA_START + size]
        wire = zstd.stored(content)
        self._expected = [bytes(header) for header in wire[::2]]
        self._headers = [memoryview(bytearray(header)) for header in self._expected]
        self._wire = [
            piece for pair in zip(self._headers, wire[1::2], strict=True) for piece in pair
        ]
        self.length = sum(map(len, self._wire))
        """Bytes on the wire."""
        self.missing = list(self._wire)
        """What is still to be filled, in order."""
        self.fits = True
        """As far as can be seen."""
        self._put(arrived)

    def _put(self, data: memoryview) -> None:
        while data and self.missing:
            count = min(len(data), len(self.missing[0]))
            self.missing[0][:count] = data[:count]
            self.filled(count)
            data = data[count:]

    def filled(self, count: int) -> None:
        """The first `count` bytes of what is missing have arrived."""
        while count:
            first = self.missing[0]
            if count < len(first):
                self.missing[0] = first[count:]
                break
            count -= len(first)
            del self.missing[0]
        done = (len(self._wire) - len(self.missing) + 1) // 2
        self.fits = self._headers[:done] == self._expected[:done]

    @property
    def awaited(self) -> bool:
        """More of it is to come, if it is laid out as expected."""
        return bool(self.missing) and self.fits

    @property
    def good(self) -> bool:
        """All is there, and laid out as expected."""
        return not self.missing and self.fits

    def arrived(self) -> bytes:
        """What is there, as it was on the wire."""
        return b"".join(self._wire)[: self.length - sum(map(len, self.missing))]
