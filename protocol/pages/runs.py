"""Find runs of neighbouring pages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def runs(numbers: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield first and last index (exclusive) of each run of page numbers that follow each other.

    There is at least one number.
    """
    breaks = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    yield from zip([0, *breaks], [*breaks, len(numbers)], strict=True)
