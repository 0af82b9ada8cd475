"""What a migration stream has shown so far: rounds, pages by kind, and its end; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..protocol import events
from ..protocol.errors import StreamError
from ..protocol.pages.rounds import Rounds
from ..protocol.reader import StreamReader
from ..protocol.wire.marks import CommandType

_SEAM = 8192
"""Bytes that are copied behind what the last piece left over; more than one record has."""
MOST_KEPT = 256
"""Limit for the finished rounds that are remembered."""


_RUNS_THERE = (CommandType.POSTCOPY_LISTEN, CommandType.POSTCOPY_RUN)


@dataclass(frozen=True)
class WatchedRound:
    """One finished pass over the dirty pages: its pages, its bytes of stream, and how long it took.

    The stream does not say where a round begins, so its ends are where a page came again.
    """

    number: int
    pages: int
    size: int
    seconds: float


class StreamView:
    """Follows one stream; `feed` runs in a thread, and all else may be read in another one."""

    def __init__(self) -> None:
        self._reader = StreamReader(mixed=True)
        self._rounds = Rounds()
        self._rest = b""
        self.round_began: float | None = None
        """When this round began, by the clock of `feed`."""
        self._round_from = 0
        self.machine = ""
        self.total = 0
        """Bytes of guest RAM, once the stream has said that."""
        self.page_size = 4096
        self.pages: Counter[str] = Counter()
        """Pages by kind: plain, zero, xbzrle, compressed."""
        self.round = 0
        self.pages_in_round = 0
        self.finished: list[WatchedRound] = []
        self.multifd = False
        """True if pages travel in channels of their own, which are not read."""
        self.postcopy = False
        """True once the destination was told to run the guest while pages are still to come."""
        self.error: StreamError | None = None
        """Why the stream is broken, or cannot be read any further."""
        self.eof: int | None = None
        """Position behind the end of the guest's state, once the description confirms it."""

    @property
    def ended(self) -> bool:
        """Return whether the stream has shown its end, and its description confirms that."""
        return self.eof is not None

    @property
    def position(self) -> int:
        """Return up to which byte the stream was read."""
        return self._reader.position

    @property
    def devices_from(self) -> int | None:
        """Return the position behind RAM, where device state begins; None before it."""
        return self._reader.keeping_from

    def feed(self, piece: memoryview, moment: float) -> None:
        """Read the next bytes, which passed at a moment, in seconds of any clock."""
        if self.error is not None:
            return
        if self.round_began is None:
            self.round_began = moment
        try:
            self._feed(piece, moment)
            if self.devices_from is not None and self.eof is None:
                self.eof = self._reader.confirmed_end
        except StreamError as error:
            self._note_all(error.found, moment)
            self.error = error

    def close(self) -> None:
        """Note that nothing follows."""
        if self.error is None and not self.ended:
            try:
                self._reader.close()
            except StreamError as error:
                self.error = error

    def _feed(self, piece: memoryview, moment: float) -> None:
        left = self._rest
        if left:
            # Only the beginning is copied behind what the last piece left over.
            done = self._parse(memoryview(left + piece[:_SEAM]), moment)
            if done < len(left):
                self._parse(memoryview(left[done:] + piece), moment)
                return
            piece = piece[done - len(left) :]
        self._parse(piece, moment)

    def _parse(self, view: memoryview, moment: float) -> int:
        """Read what is whole in `view`; return how many bytes that were."""
        found, done = self._reader.parse(view)
        self._rest = bytes(view[done:])
        self._note_all(found, moment)
        return done

    def _note_all(self, found: Sequence[events.Event], moment: float) -> None:
        for event in found:
            if isinstance(event, (events.PageRun, events.EncodedRun)):
                self._note_pages(event, moment)
            elif isinstance(event, events.Configuration):
                self.machine = event.machine
            elif isinstance(event, events.RamBlocks):
                self.total, self.page_size = event.total, event.page_size
            elif isinstance(event, events.MultifdFlush):
                self.multifd = True
            elif isinstance(event, events.Command) and event.command in _RUNS_THERE:
                self.postcopy = True

    def _note_pages(self, run: events.PageRun | events.EncodedRun, moment: float) -> None:
        many = len(run.offsets)
        if isinstance(run, events.MixedRun):
            zero = int(np.count_nonzero(run.zero))
            self.pages["zero"] += zero
            self.pages["plain"] += many - zero
        else:
            self.pages["xbzrle" if isinstance(run, events.XbzrleRun) else "compressed"] += many
        numbers = (run.offsets // np.uint64(self.page_size)).astype(np.intp)
        for number, count in self._rounds.split(run.block_index, numbers):
            if number != self.round:
                self._round_ends(number, run.offset, moment)
            self.pages_in_round += count

    def _round_ends(self, number: int, offset: int, moment: float) -> None:
        """Note that a round begins at `offset`, so that the one before it has ended."""
        assert self.round_began is not None
        size, seconds = offset - self._round_from, moment - self.round_began
        done = WatchedRound(self.round, self.pages_in_round, size, seconds)
        self.finished = [*self.finished[-MOST_KEPT + 1 :], done]
        self.round, self.pages_in_round = number, 0
        self.round_began, self._round_from = moment, offset
