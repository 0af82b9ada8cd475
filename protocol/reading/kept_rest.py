"""Keep all bytes that follow RAM, up to the limit of device state, and find the end in them.

`devices.ending` decides where sections and the stream end.
"""

from __future__ import annotations

from ..devices.ending import Ended, Ending
from ..errors import StreamError
from ..wire.cursor import Cursor, Incomplete
from ..wire.kept import Kept
from .device_limit import check_device_state


class KeptRest:
    """The bytes of a stream from the first device section after RAM on, or from its EOF.

    `max_size`: limit for these bytes, None for no limit.
    """

    def __init__(self, ending: Ending, max_size: int | None) -> None:
        self._ending = ending
        self._max_size = max_size

    @property
    def offset(self) -> int:
        """Return the position in the stream of the first kept byte."""
        return self._ending.offset

    @property
    def kept(self) -> Kept:
        """Return the bytes that are kept; the caller of the reader may append to them itself."""
        return self._ending.kept

    @property
    def end(self) -> int:
        """Return the position in the stream after the last kept byte."""
        return self._ending.offset + self._ending.kept.size

    def whole(self) -> bool:
        """Return whether a description confirms that the stream ends with the last kept byte."""
        return self._ending.whole()

    def confirmed_end(self) -> int | None:
        """Return the position behind the EOF before that description; None without one."""
        end = self._ending.confirmed_end()
        return None if end is None else self.offset + end

    def bare(self) -> bool:
        """Return whether the kept bytes look like a whole stream that has no description.

        The check scans all of them.
        """
        return self._ending.bare()

    def read(self, cursor: Cursor) -> None:
        """Keep the bytes at hand, up to the limit; raise Incomplete if that is not reached."""
        end, limit = len(cursor.view), self._max_size
        if limit is not None:
            end = min(end, cursor.position + self.offset + limit - cursor.offset)
        self.kept.append(cursor.view[cursor.position : end])
        cursor.position = end
        cursor.commit()
        if end == len(cursor.view):
            raise Incomplete

    def resolve(self, *, at_end: bool) -> Ended:
        """Return the events of the kept bytes; `at_end`: the input has ended, too.

        Raises StreamError if no end can be found, or if it may be beyond the limit.
        """
        limit = self._max_size
        try:
            ended = self._ending.resolve()
        except StreamError:
            # The fault may only be that the rest is missing.
            if limit is not None:
                check_device_state(self.kept.size + 1, limit, self.offset + limit)
            raise
        # Bytes that the caller keeps itself are not checked when they arrive.
        check_device_state(ended.end, limit, self.offset)
        if ended.guessed and not at_end:
            # The stream may end later than this.
            check_device_state(self.kept.size + 1, limit, self.offset)
        return ended
