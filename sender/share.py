"""Deal RAM to the workers: each one scans the same chunks in every round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Share:
    """The part of RAM of one worker: it owns chunks `index`, `index + count`, ..."""

    index: int
    count: int

    def of(self, whole: int) -> int:
        """Return how many of `whole` equal things this worker gets."""
        return whole // self.count + (self.index < whole % self.count)

    def own(self, before: int, count: int) -> npt.NDArray[np.intp]:
        """Return which of `count` chunks this worker owns; `before` is the number of the first."""
        return np.arange((self.index - before) % self.count, count, self.count)
