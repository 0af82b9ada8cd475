"""Watch the migration stream that passes, without holding it up.

Runs of pages are read at once: that takes less time than to hand them to a thread, and the block is
still in the processor's cache. Everything else waits in a short queue for a thread beside the event
loop, as views of the blocks themselves. A watch that does not keep up ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..protocol.errors import UnsupportedError
from ..protocol.wire import multifd
from ..protocol.wire.marks import MAGIC
from ..transport.compression import Framer
from .blocks import BLOCK_SIZE, Buffers
from .multifd_view import MOST_EARLY, MultifdView
from .view import StreamView

MOST_WAITING = 32
"""Limit for the blocks that wait to be read."""
CHEAP = 0.5e-9
"""Seconds for a byte of stream up to which the next block is read at once, too."""
_MAGIC = MAGIC.to_bytes(4, "big")
_MULTIFD = multifd.MAGIC.to_bytes(4, "big")
TLS = b"\x16\x03"
"""First bytes of a TLS connection: a handshake record of version 3.x (RFC 8446)."""
SAMPLE_EVERY = 64 << 20
"""Bytes of stream from one sample for compression to the next."""
SAMPLE_SIZE = 64 << 10
"""Bytes of one sample."""
SAMPLE_LEVEL = 1
"""zstd level at which samples are compressed."""
_CANNOT_TELL = "the relay cannot tell whether the destination has the whole guest"
_CLOSING = 0.5
"""Seconds that the thread has to read what waits when the migration is over."""


@dataclass(frozen=True)
class _Piece:
    view: memoryview
    buffer: bytearray | None
    moment: float
    channel: MultifdView | None


class StreamWatch:
    """Finds the stream among the connections of one migration, and follows it.

    `who`: words for whoever sends the stream. `samples`: whether to find out what zstd would make
    of it.
    """

    def __init__(
        self, buffers: Buffers, report: Callable[[str], None], who: str, *, samples: bool
    ) -> None:
        self.view: StreamView | None = None
        """The rounds, pages and end that the stream has shown; None before a stream begins."""
        self.channel: int | None = None
        """Number of the connection with the stream."""
        self.opaque: int | None = None
        """Number of a connection that is encrypted, if there is one."""
        self.behind = False
        """True if it has ended, because it did not keep up."""
        self.sampled = 0
        """Bytes of all samples."""
        self.sampled_zstd = 0
        """Bytes of all samples, compressed."""
        self._buffers = buffers
        self._report = report
        self._who = who
        self._samples = samples
        self._heads: dict[int, bytes] = {}
        self._multifd: dict[int, MultifdView] = {}
        self._queue: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._put = self._done = self._next_sample = self._ahead = 0
        self._cheap = True
        self._closed = False
        self._read: deque[bytearray] = deque()
        self._named = False
        self._framer = Framer(checksum=False)

    @property
    def zstd(self) -> float | None:
        """Return the part of the stream that zstd would leave; None without samples."""
        return self.sampled_zstd / self.sampled if self.sampled else None

    def see(self, number: int, view: memoryview, buffer: bytearray | None) -> bool:
        """Take what passes next on a connection; return False if no more of it is wanted."""
        self.look()
        if number == self.channel:
            return self._take(view, buffer)
        if number in self._multifd:
            return self._take(view, buffer, self._multifd[number])
        return self._recognise(number, self._heads.pop(number, b"") + view)

    def _recognise(self, number: int, head: bytes) -> bool:
        """Find out what a connection carries by its first bytes; return False if nothing known."""
        early = head.startswith(_MULTIFD) and self.view is None and len(head) <= MOST_EARLY
        if early or len(head) < len(_MAGIC):
            # A channel may have overtaken the stream on its way over the link.
            self._heads[number] = head
            return True
        if head.startswith(_MAGIC) and self.channel is None:
            self._begin(number)
            return self._take(memoryview(head), None)
        if head.startswith(_MULTIFD) and self.view is not None:
            self._multifd[number] = MultifdView()
            return self._take(memoryview(head), None, self._multifd[number])
        if head.startswith(TLS) and self.opaque is None:
            self.opaque = number
            self._report(
                "the connection is encrypted: there is nothing to see in it, and compressing it"
                " gains nothing"
            )
        return False

    def _begin(self, number: int) -> None:
        self.channel, self.view = number, StreamView()
        run = threading.Thread(target=self._run, args=(self.view,), daemon=True)
        self._thread = run
        run.start()

    def _take(
        self, view: memoryview, buffer: bytearray | None, channel: MultifdView | None = None
    ) -> bool:
        """Read what passes next on the main channel, or on one of multifd."""
        if self.behind or self.view is None or self.view.error is not None:
            return False
        if self._ahead and channel is None:
            # `look_ahead` has seen the beginning already.
            skipped = min(self._ahead, len(view))
            self._ahead -= skipped
            view = view[skipped:]
        piece = _Piece(view, buffer, time.monotonic(), channel)
        if self._cheap and self._put == self._done and self.view.devices_from is None:
            self._read_now(self.view, piece)
            return self.view.error is None
        if self._put - self._done >= MOST_WAITING:
            self.behind = True
            self._queue.put(None)
            self._report("the stream passes faster than it can be read, so nothing more is shown")
            return False
        if buffer is not None:
            self._buffers.lend(buffer)
        self._cheap = True
        self._put += 1
        self._queue.put(piece)
        return True

    def _read_now(self, view: StreamView, piece: _Piece) -> None:
        """Read a piece, and find out whether that holds up the stream."""
        started = time.perf_counter()
        try:
            self._read_piece(view, piece)
        except Exception as error:
            # Whatever it is, the migration itself can go on.
            self.behind = True
            self._report(f"a fault of this relay, so nothing more is shown: {error!r}")
            return
        spent = time.perf_counter() - started
        self._cheap = spent < CHEAP * max(len(piece.view), BLOCK_SIZE)
        self.look()

    def look_ahead(self, content: memoryview) -> None:
        """Read what follows already now; it passes `see` again later."""
        fresh = bytes(content[self._ahead :])
        if fresh and self._take_ahead(fresh):
            self._ahead = len(content)

    def _take_ahead(self, fresh: bytes) -> bool:
        ahead, self._ahead = self._ahead, 0
        try:
            return self._take(memoryview(fresh), None)
        finally:
            self._ahead = ahead

    def look(self) -> None:
        """Give back what was read, and say so once if the stream is broken."""
        while self._read:
            self._buffers.end_loan(self._read.popleft())
        error = None if self.view is None else self.view.error or self.view.channel_error
        if error is None or self._named:
            return
        self._named = True
        if isinstance(error, UnsupportedError):
            self._report(f"the stream cannot be shown any further: {error}")
        else:
            self._report(f"{self._who} sends a broken stream: {error}")

    @property
    def idle(self) -> bool:
        """Return whether everything was read that passed so far."""
        return self._put == self._done or self._thread is None or not self._thread.is_alive()

    def doubt(self, left: int) -> str | None:
        """Return in words why the destination may have the guest; None if it cannot have it.

        `left`: position of the stream up to which its bytes may have reached the destination.
        """
        view = self.view
        if not left:
            return None
        if view is None:
            return f"{_CANNOT_TELL} (the connection is encrypted)"
        if self.behind or view.error is not None:
            return f"{_CANNOT_TELL} (the stream was not read up to here)"
        if view.postcopy or view.devices_from is None:
            # A source that is in postcopy does not take its guest back: it waits for a new link.
            return None
        # Before the description confirms an end, any byte behind RAM may be the last one.
        needed = view.devices_from + 1 if view.eof is None else view.eof
        return "the destination may have the whole guest" if left >= needed else None

    def close(self) -> None:
        """Read what waits, and end the thread."""
        if self._thread is not None and not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join(_CLOSING)
            self.look()

    def _run(self, view: StreamView) -> None:
        """Read what passes until the end; this is the thread."""
        try:
            self._read_all(view)
        except BaseException:
            self.behind = True
            raise

    def _read_all(self, view: StreamView) -> None:
        while (taken := self._queue.get()) is not None:
            self._read_piece(view, taken)
            if taken.buffer is not None:
                self._read.append(taken.buffer)
            self._done += 1
            del taken

    def _read_piece(self, view: StreamView, piece: _Piece) -> None:
        if piece.channel is None:
            view.feed(piece.view, piece.moment)
        else:
            view.feed_channel(piece.channel, piece.view, piece.moment)
        if self._samples and view.seen >= self._next_sample:
            self._next_sample = view.seen + SAMPLE_EVERY
            self._sample(piece.view[:SAMPLE_SIZE])

    def _sample(self, content: memoryview) -> None:
        self.sampled_zstd += len(self._framer.frame(content, SAMPLE_LEVEL))
        self.sampled += len(content)
