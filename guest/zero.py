"""Find pages that are all zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def zero_mask(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return a mask, (n,) bool, of the `pages` (n, page_size) u8 that are all zero.

    Zero pages are often contiguous, so all pages are read at once if the first and the last may be
    zero. Otherwise a check of the first word avoids reading most pages in full.
    """
    words = pages.view("<u8")
    if len(words) and words[0, 0] == 0 == words[-1, 0] and not words.max():
        return np.ones(len(words), np.bool_)
    candidates: npt.NDArray[np.bool_] = words[:, 0] == 0
    if candidates.any():
        candidates[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) == 0
    return candidates
