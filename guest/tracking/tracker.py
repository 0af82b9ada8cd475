"""Define the interface of all dirty trackers, and what those have in common that know of writes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Tracker(Protocol):
    """A record of which pages of one RAM block are dirty; page numbers count from its start.

    Law 1 is kept by an order: `take_dirty` re-arms what it returns, and only then may the pages be
    looked at and copied. A page that the guest writes meanwhile is found again by the next take.
    """

    @property
    def compares(self) -> bool:
        """Return whether `sent` needs the bytes that were sent, to compare with them later."""

    def chunks_to_take(self, size: int) -> Mask:
        """Return, for each chunk of `size` pages, whether a take may find dirty pages in it.

        This re-arms nothing, so a chunk that is left out keeps what is dirty for later.
        """

    def take_dirty(self, first: int, end: int) -> Mask:
        """Return which pages from `first` to before `end` may be dirty, and re-arm these."""

    def changed(self, pages: npt.NDArray[np.uint8], first: int, taken: Mask) -> Mask:
        """Return which of the pages that were taken must be sent.

        `pages`, (n, page_size), is live memory from page `first` on, and `taken` the answer of
        `take_dirty` for these pages.
        """

    def changed_to_zero(self, first: int, taken: Mask) -> Mask:
        """Return which of the pages that were taken must be sent, if all of them are zero now."""

    def sent(self, numbers: npt.NDArray[np.intp], copies: npt.NDArray[np.uint8]) -> None:
        """Record that these pages were put on the wire as `copies` (n, page_size) hold them."""

    def sent_zero(self, numbers: npt.NDArray[np.intp]) -> None:
        """Record that these pages were put on the wire as zero."""


class Written:
    """The part of a tracker that takes what was written for changed, and looks at no page."""

    compares = False
    """False: the marks say what was written."""

    def changed(self, pages: npt.NDArray[np.uint8], first: int, taken: Mask) -> Mask:
        """Return all that were taken: what was written counts as changed."""
        del pages, first
        return taken

    def changed_to_zero(self, first: int, taken: Mask) -> Mask:
        """Return all that were taken."""
        del first
        return taken

    def sent(self, numbers: npt.NDArray[np.intp], copies: npt.NDArray[np.uint8]) -> None:
        """Do nothing: the marks were re-armed before the pages were copied."""

    def sent_zero(self, numbers: npt.NDArray[np.intp]) -> None:
        """Do nothing: the marks were re-armed before the pages were looked at."""
