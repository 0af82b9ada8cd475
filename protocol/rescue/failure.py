"""Note where reading stopped, why, and which page was the last one before."""

from __future__ import annotations

from dataclasses import dataclass

from .. import events
from ..errors import CutError, StreamError
from ..formats.zstd import CompressedError
from ..wire.ram import RECORD_HEADER_SIZE
from .damage import Place


@dataclass(frozen=True)
class Failure:
    """The place where reading stopped, and the reason.

    `offset`: in the stream; `record`: where the last page record begins; `before`, `doubtful`: as
    in Damage; `stride`: bytes of each of the last records, the next of which would begin at
    `offset`, or 0 if their sizes differ.
    """

    offset: int
    message: str
    record: int
    before: Place | None
    doubtful: bool
    stride: int


class Progress:
    """The facts on the events so far that a Failure reports."""

    def __init__(self, offset: int) -> None:
        self.before: Place | None = None
        self._record = offset
        self._last: events.Event | None = None

    def take(self, event: events.Event) -> None:
        """Record the next event of the stream."""
        self._last = event
        if isinstance(event, events.MappedRun):
            return
        if isinstance(event, (events.PageRun, events.EncodedRun)):
            last = len(event.offsets) - 1
            self.before = Place(event.block_index, int(event.offsets[last]))
            self._record = event.record_offset(last)
        else:
            self._record = max(self._record, event.offset)

    def failure(self, error: StreamError) -> Failure:
        """Return the failure after these events.

        If the stream only ends early, the last page is not doubtful.
        """
        ended = isinstance(error, (CutError, CompressedError))
        page = isinstance(self._last, (events.PageRun, events.EncodedRun)) and not ended
        stride = 0
        if page and isinstance(self._last, events.PageRun):
            body = 1 if self._last.data is None else self._last.data.shape[1]
            stride = RECORD_HEADER_SIZE + body
        offset = max(error.offset, self._record)
        return Failure(offset, error.message, self._record, self.before, page, stride)
