"""Decompression of the incoming stream: zstd frames come in, slots of what they hold go out.

Frames that fit a slot are decompressed by a pool of threads (zstd lets the others run meanwhile),
each straight into a buffer of its own. Others go through a window of bounded size, piece by piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from ..protocol.formats.zstd import (
    MAX_WINDOW,
    CompressedError,
    Frame,
    FrameWalker,
    Piece,
    join_stored,
    stored_size,
)
from .slots import DATA_BYTES, DATA_START, SLOT_SIZE
from .stored import StoredFrame

ROOM = 4
"""How many frames of the largest size there is room for: so they are seldom moved together."""

Slot: TypeAlias = npt.NDArray[np.uint8]


class Inflater:
    """Takes the compressed stream, hands on what it holds, in order.

    `take`: gets a slot and how many bytes from DATA_START on were filled, and says whether the
    stream may go on behind them. With `threads` 0 the caller's own decompresses.
    """

    def __init__(self, threads: int, take: Callable[[Slot, int], bool]) -> None:
        self._take = take
        self._walker = FrameWalker(DATA_BYTES)
        self._pool = ThreadPoolExecutor(threads, "vmferry-inflate") if threads else None
        self._free = [np.empty(SLOT_SIZE, np.uint8) for _ in range(max(1, 2 * threads))]
        self._under_way: deque[tuple[Slot, Future[int]]] = deque()
        self._stream: zstandard.ZstdDecompressionWriter | None = None
        self._over = False
        self._piece_offset = 0
        self._room: memoryview = np.empty(ROOM * self._walker.most, np.uint8).data
        self._start = self._end = 0

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._under_way

    @property
    def ended(self) -> bool:
        """The stream is over, and so is the frame that it ended in; what follows is not ours."""
        return self._over and self._stream is None

    @property
    def space(self) -> memoryview:
        """Where the next compressed bytes go, behind those that are not done with."""
        if len(self._room) - self._end < self._walker.most:
            waiting = self._end - self._start
            self._room[:waiting] = self._room[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._room[self._end :]

    def filled(self, count: int) -> None:
        """So many bytes came into `space`. Raises CompressedError, or what `take` raises."""
        self._end += count
        view = self._room[self._start : self._end]
        position, walker = 0, self._walker
        while position == 0 or walker.more:
            found, done = walker.parse(view[position:])
            for part in found:
                start, end = position + part.start, position + part.end
                if isinstance(part, Piece):
                    self._piece(part, view[start:end])
                else:
                    self._frame(part, view[start:end])
                if self.ended:
                    return
            position += done
            if not done:
                break
        if walker.error is not None:
            self._finish_all()
            if not self.ended:
                raise walker.error
        self._start += position

    def begin_stored(self) -> StoredFrame | None:
        """The frame that has begun to arrive, if it is stored: to be filled, then to be ended."""
        waiting = self._room[self._start : self._end]
        size = None if self._under_way or self._over or self._stream else stored_size(waiting)
        if size is None or size > DATA_BYTES:
            return None
        frame = StoredFrame(self._free[0], size, waiting)
        return frame if len(waiting) < frame.length else None

    def end_stored(self, frame: StoredFrame) -> None:
        """What comes of it has arrived. Raises as `filled`."""
        if frame.good:
            self._start = self._end = 0
            self._walker.pass_frame(frame.length)
            self._hand_on(frame.slot, frame.size)
            return
        # It is laid out otherwise, or did not come whole.
        more = frame.arrived()[self._end - self._start :]
        self.space[: len(more)] = more
        self.filled(len(more))

    def finish_one(self) -> None:
        """Hand on the oldest that is under way, when it is done."""
        slot, future = self._under_way.popleft()
        if not self._over:
            self._hand_on(slot, future.result())
        self._free.append(slot)

    def _finish_all(self) -> None:
        while self._under_way:
            self.finish_one()

    def _hand_on(self, slot: Slot, count: int) -> None:
        self._over = not self._take(slot, count)

    def close(self) -> None:
        """The input has ended: hand on the rest. Raises CompressedError if it ended in a frame."""
        self._finish_all()
        if not self.ended:
            self._walker.close()

    def stop(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _frame(self, frame: Frame, data: memoryview) -> None:
        if frame.stored:
            # One copy here is less than what it takes to have a thread do it.
            self._finish_all()
            if not self._over:
                self._hand_on(self._free[0], _join(data, frame, self._free[0]))
            return
        if self._pool is None:
            self._hand_on(self._free[0], _inflate(data, frame, self._free[0]))
            return
        if not self._free:
            self.finish_one()
        slot = self._free.pop()
        # Its place is wanted for what comes.
        future = self._pool.submit(_inflate, memoryview(bytes(data)), frame, slot)
        self._under_way.append((slot, future))

    def _piece(self, piece: Piece, data: memoryview) -> None:
        self._finish_all()
        if self.ended:
            return
        if self._stream is None:
            decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
            self._stream = decompressor.stream_writer(self, closefd=False)  # type: ignore[arg-type]
        self._piece_offset = piece.offset
        try:
            self._stream.write(data)
        except zstandard.ZstdError as error:
            raise _bad_frame(error, piece.offset) from None
        if piece.last:
            self._stream = None

    def write(self, data: bytes) -> int:
        """What the stream writer calls, with at most 128 KiB."""
        if self._over:
            message = "the zstd frame goes on behind the end of the stream"
            raise CompressedError(message, offset=self._piece_offset)
        slot = self._free[0]
        slot[DATA_START : DATA_START + len(data)] = np.frombuffer(data, np.uint8)
        self._hand_on(slot, len(data))
        return len(data)


def _join(data: memoryview, frame: Frame, slot: Slot) -> int:
    """The same as `_inflate` for a stored frame."""
    try:
        count = join_stored(data, slot.data[DATA_START:])
    except ValueError:
        raise _wrong_size("more than it says", frame) from None
    if count != frame.content_size:
        raise _wrong_size(f"{count} bytes", frame)
    return count


def _inflate(data: memoryview, frame: Frame, slot: Slot) -> int:
    """Decompress a whole frame into a slot; how many bytes. Raises CompressedError."""
    # A byte at least: nothing would be read into no place, and an empty frame may lie, too.
    target = slot.data[DATA_START : DATA_START + max(1, frame.content_size)]
    try:
        # The frame and the place for all of it being at hand, it goes there in one pass.
        count = zstandard.ZstdDecompressor().stream_reader(data).readinto(target)
    except zstandard.ZstdError as error:
        raise _bad_frame(error, frame.offset) from None
    if count != frame.content_size:
        raise _wrong_size(f"{count} bytes", frame)
    return count


def _wrong_size(held: str, frame: Frame) -> CompressedError:
    message = f"the zstd frame holds {held}, not {frame.content_size}"
    return CompressedError(message, offset=frame.offset)


def _bad_frame(error: zstandard.ZstdError, offset: int) -> CompressedError:
    return CompressedError(f"bad zstd frame: {error}", offset=offset)
