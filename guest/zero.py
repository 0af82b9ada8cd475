"""Which pages are all zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def zero_mask(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(n,) bool for `pages` (n, page_size) u8: whether each was read as all zero.

    Pages that are zero stand together: if the first and the last may be, all are read at once. A
    look at the first word spares most others the whole reading.
    """
    words = pages.view("<u8")
    if len(words) and words[0, 0] == 0 == words[-1, 0] and not words.max():
        return np.ones(len(words), np.bool_)
    candidates: npt.NDArray[np.bool_] = words[:, 0] == 0
    if candidates.any():
        candidates[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) == 0
    return candidates
