"""Find runs of neighbouring pages, by their numbers or by their positions in bytes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Places: TypeAlias = npt.NDArray[np.uint64] | npt.NDArray[np.intp]


def is_run(places: Places, step: int) -> bool:
    """Return whether each place, of which there is at least one, is `step` behind the one before.

    The first and the last usually show if they are not.
    """
    if int(places[-1]) - int(places[0]) != (len(places) - 1) * step:
        return False
    return bool((places[1:] - places[:-1] == step).all())


def runs(places: Places, step: int = 1) -> list[tuple[int, int]]:
    """Return first and last index (exclusive) of each run of places that are `step` apart.

    There is at least one place. Most often all places are one run.
    """
    if is_run(places, step):
        return [(0, len(places))]
    breaks = (np.flatnonzero(places[1:] - places[:-1] != step) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(places)], strict=True))
