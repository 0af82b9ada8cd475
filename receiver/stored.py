"""Read a stored zstd frame straight from the channel into a slot, without a copy.

The ends of its blocks are known beforehand if the frame has the layout that `stored_frames` in
`protocol.formats` writes. The block headers go to a separate buffer and are compared as they
arrive: a frame with another layout may be shorter, and must not be waited for.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..protocol.formats.stored_frames import stored
from .slots import DATA_START

Slot: TypeAlias = npt.NDArray[np.uint8]


class StoredFrame:
    """A stored frame with `size` bytes of content, whose first bytes on the wire have arrived."""

    def __init__(self, slot: Slot, size: int, arrived: memoryview) -> None:
        self.slot = slot
        self.size = size
        content = slot.data[DATA_START : DATA_START + size]
        wire = stored(content)
        self._expected = [bytes(header) for header in wire[::2]]
        self._headers = [memoryview(bytearray(header)) for header in self._expected]
        self._wire = [
            piece for pair in zip(self._headers, wire[1::2], strict=True) for piece in pair
        ]
        self.length = sum(map(len, self._wire))
        """Length of the frame on the wire, in bytes."""
        self.missing = list(self._wire)
        """The buffers that are still to be filled, in order."""
        self.fits = True
        """False as soon as a block header shows another layout than expected."""
        self._put(arrived)

    def _put(self, data: memoryview) -> None:
        while data and self.missing:
            count = min(len(data), len(self.missing[0]))
            self.missing[0][:count] = data[:count]
            self.filled(count)
            data = data[count:]

    def filled(self, count: int) -> None:
        """Record that the first `count` missing bytes have arrived."""
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
        """Return whether more of the frame is to arrive, given the expected layout."""
        return bool(self.missing) and self.fits

    @property
    def good(self) -> bool:
        """Return whether the whole frame has arrived with the expected layout."""
        return not self.missing and self.fits

    def arrived(self) -> bytes:
        """Return the bytes of the frame that have arrived, as they were on the wire."""
        return b"".join(self._wire)[: self.length - sum(map(len, self.missing))]
