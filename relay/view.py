"""Follow a migration stream that passes: rounds, pages by kind, and its end; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..protocol import events
from ..protocol.errors import StreamError
from ..protocol.pages.rounds import Rounds
from ..protocol.reader import StreamReader
from ..protocol.reading.multifd_reader import Packet
from ..protocol.wire.marks import CommandType
from .multifd_view import MultifdView

_SEAM = 8192
"""Bytes that are copied behind what the last piece left over; more than one record has."""
_MANY, _SPLIT_EVERY = 4096, 0.2
"""Pages, and seconds, after which pages are counted for their rounds: each time costs the same."""
MOST_KEPT = 256
"""Limit for the finished rounds that are remembered."""


_RUNS_THERE = (CommandType.POSTCOPY_LISTEN, CommandType.POSTCOPY_RUN)


@dataclass(frozen=True)
class WatchedRound:
    """One finished pass over the dirty pages: its pages, its bytes of stream, and how long it took.

    The stream does not say where a round begins, so its ends are where a page occurs again.
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
        self._waiting: list[events.PageRun | events.EncodedRun] = []
        self._pages_waiting = 0
        self._split_at = 0.0
        self.round_began: float | None = None
        """Time at which this round began, by the clock of `feed`."""
        self._round_from = 0
        self.machine = ""
        self._listed: events.RamBlocks | None = None
        self._in_channels = 0
        self.total = 0
        """Bytes of guest RAM, once the stream has said that."""
        self.page_size = 4096
        self.pages: Counter[str] = Counter()
        """Pages by kind: plain, zero, xbzrle, compressed."""
        self.round = 0
        self.pages_in_round = 0
        self.finished: list[WatchedRound] = []
        self.multifd = False
        """True if pages travel in channels of their own."""
        self.channel_error: StreamError | None = None
        """Why those channels are broken, or cannot be read."""
        self.postcopy = False
        """True once the destination was asked to run the guest while pages are missing."""
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
    def seen(self) -> int:
        """Return how many bytes were read, of the stream and of the channels of multifd."""
        return self._reader.position + self._in_channels

    @property
    def devices_from(self) -> int | None:
        """Return the position behind RAM, where device state begins; None before it."""
        return None if self._reader.rest is None else self._reader.rest.offset

    def feed(self, piece: memoryview, moment: float) -> None:
        """Read the next bytes, which passed at a moment, in seconds of any clock."""
        if self.error is not None:
            return
        if self.round_began is None:
            self.round_began = moment
        try:
            self._feed(piece, moment)
            late = moment - self._split_at >= _SPLIT_EVERY or self.devices_from is not None
            if self._waiting and (late or self._pages_waiting >= _MANY):
                self._split(moment)
            if self._reader.rest is not None and self.eof is None:
                self.eof = self._reader.rest.confirmed_end()
        except StreamError as error:
            self._note_all(error.found, moment)
            self.error = error

    def feed_channel(self, channel: MultifdView, piece: memoryview, moment: float) -> None:
        """Read the next bytes of a multifd channel, which passed at a moment."""
        self.multifd = True
        if self.channel_error is not None:
            return
        try:
            for packet in channel.feed(piece, self._listed):
                self._note_packet(packet, moment)
            self._in_channels += len(piece)
        except StreamError as error:
            self.channel_error = error

    def _note_packet(self, packet: Packet, moment: float) -> None:
        if packet.block is None:
            return
        self.pages["plain"] += len(packet.normal)
        self.pages["zero"] += len(packet.zero)
        offsets = np.concatenate([packet.normal, packet.zero])
        self._count(packet.block_index, offsets, self._reader.position, moment)

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
                self._note_run(event, moment)
            elif isinstance(event, events.Configuration):
                self.machine = event.machine
            elif isinstance(event, events.RamBlocks):
                self._listed = event
                self.total, self.page_size = event.total, event.page_size
            elif isinstance(event, (events.MultifdFlush, events.EndOfRam)):
                self.multifd = self.multifd or isinstance(event, events.MultifdFlush)
                if self.multifd:
                    self._rounds.end_interval()
            elif isinstance(event, events.Command) and event.command in _RUNS_THERE:
                self.postcopy = True

    def _note_run(self, run: events.PageRun | events.EncodedRun, moment: float) -> None:
        """Count the pages of a run; to which round they belong is found out for many at once."""
        many = len(run.offsets)
        if isinstance(run, events.MixedRun):
            zero = int(np.count_nonzero(run.zero))
            self.pages["zero"] += zero
            self.pages["plain"] += many - zero
        else:
            self.pages["xbzrle" if isinstance(run, events.XbzrleRun) else "compressed"] += many
        if self._waiting and self._waiting[0].block_index != run.block_index:
            self._split(moment)
        self._waiting.append(run)
        self._pages_waiting += many

    def _split(self, moment: float) -> None:
        """Count the pages that wait, which are of one RAM block, for their rounds."""
        first = self._waiting[0]
        offsets = np.concatenate([run.offsets for run in self._waiting])
        self._waiting.clear()
        self._pages_waiting, self._split_at = 0, moment
        self._count(first.block_index, offsets, first.offset, moment)

    def _count(
        self, block: int, offsets: npt.NDArray[np.uint64], position: int, moment: float
    ) -> None:
        """Count pages of one RAM block for their rounds; `position`: in the stream."""
        numbers = (offsets // np.uint64(self.page_size)).astype(np.intp)
        split = self._rounds.split_interval if self.multifd else self._rounds.split
        for number, count in split(block, numbers):
            # Channels overtake each other, so a page of the last round may be late.
            if number > self.round:
                self._round_ends(number, position + self._in_channels, moment)
            self.pages_in_round += count

    def _round_ends(self, number: int, offset: int, moment: float) -> None:
        """Note that a round begins at `offset`, so that the one before it has ended."""
        assert self.round_began is not None
        size, seconds = offset - self._round_from, moment - self.round_began
        done = WatchedRound(self.round, self.pages_in_round, size, seconds)
        self.finished = [*self.finished[-MOST_KEPT + 1 :], done]
        self.round, self.pages_in_round = number, 0
        self.round_began, self._round_from = moment, offset
