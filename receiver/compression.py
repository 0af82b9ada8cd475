"""Decompress the incoming stream: zstd frames come in, slots with their content go out.

Frames that fit a slot are decompressed by a pool of threads, each straight into its own buffer;
zstd releases the interpreter lock meanwhile. Other frames pass through a window of bounded size,
piece by piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from ..protocol.formats.stored_frames import join_stored, stored_size
from ..protocol.formats.zstd import (
    MAX_WINDOW,
    CompressedError,
    Frame,
    FrameWalker,
    Piece,
)
from .slots import DATA_BYTES, DATA_START, SLOT_SIZE
from .stored import StoredFrame

ROOM = 4
"""Number of frames of the largest size that the input buffer has room for, to move data rarely."""

Slot: TypeAlias = npt.NDArray[np.uint8]


class Inflater:
    """The decompressor of the stream; it hands on the content in order.

    `take` is called with a slot and the number of bytes filled from DATA_START on, and returns
    whether the stream may continue after them. With `threads` 0 the calling thread decompresses.
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
        """Return whether nothing is under way."""
        return not self._under_way

    @property
    def ended(self) -> bool:
        """Return whether the stream and its last frame have ended; later bytes are foreign."""
        return self._over and self._stream is None

    @property
    def space(self) -> memoryview:
        """Return the buffer for the next compressed bytes, behind those that still wait."""
        if len(self._room) - self._end < self._walker.most:
            waiting = self._end - self._start
            self._room[:waiting] = self._room[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._room[self._end :]

    def filled(self, count: int) -> None:
        """Process `count` bytes that were read into `space`.

        Raises CompressedError, or what `take` raises.
        """
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
        """Return the frame that has begun to arrive, if it is stored; fill it, then end it."""
        waiting = self._room[self._start : self._end]
        size = None if self._under_way or self._over or self._stream else stored_size(waiting)
        if size is None or size > DATA_BYTES:
            return None
        frame = StoredFrame(self._free[0], size, waiting)
        return frame if len(waiting) < frame.length else None

    def end_stored(self, frame: StoredFrame) -> None:
        """Hand on the content of a stored frame that has arrived. Raises the same as `filled`."""
        if frame.good:
            self._start = self._end = 0
            self._walker.pass_frame(frame.length)
            self._hand_on(frame.slot, frame.size)
            return
        # The frame has another layout, or did not arrive whole.
        more = frame.arrived()[self._end - self._start :]
        self.space[: len(more)] = more
        self.filled(len(more))

    def finish_one(self) -> None:
        """Wait for the oldest slot under way and hand it on."""
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
        """Hand on the rest after the end of input.

        Raises CompressedError if the input ended inside a frame.
        """
        self._finish_all()
        if not self.ended:
            self._walker.close()

    def stop(self) -> None:
        """End the threads that decompress."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _frame(self, frame: Frame, data: memoryview) -> None:
        if frame.stored:
            # One copy here is cheaper than handing the frame to a thread.
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
        # Copied, because the buffer is reused for the next input.
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
        """Hand on decompressed bytes; the stream writer calls it, with at most 128 KiB."""
        if self._over:
            message = "the zstd frame goes on behind the end of the stream"
            raise CompressedError(message, offset=self._piece_offset)
        slot = self._free[0]
        slot[DATA_START : DATA_START + len(data)] = np.frombuffer(data, np.uint8)
        self._hand_on(slot, len(data))
        return len(data)


def _join(data: memoryview, frame: Frame, slot: Slot) -> int:
    """Copy the content of a stored frame into a slot; return its size. Raises CompressedError."""
    try:
        count = join_stored(data, slot.data[DATA_START:])
    except ValueError:
        raise _wrong_size("more than it says", frame) from None
    if count != frame.content_size:
        raise _wrong_size(f"{count} bytes", frame)
    return count


def _inflate(data: memoryview, frame: Frame, slot: Slot) -> int:
    """Decompress a whole frame into a slot; return its size. Raises CompressedError."""
    # At least one byte: with no room nothing would be read, and the header of an empty frame may be
    # false as well.
    target = slot.data[DATA_START : DATA_START + max(1, frame.content_size)]
    try:
        # With the whole frame and room for its content at hand, one pass is enough.
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
