"""Decide whether a stream that falls silent is at its end, and check the end that it has."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from ..protocol import events
from ..protocol.errors import StreamError
from ..protocol.handover import Peer, Word
from ..protocol.reader import StreamReader
from ..protocol.words import word_on_wire
from ..transport.channel import Channel, ChannelError
from .answers import Answers
from .refusal import refuse

ENDING_GRACE = 0.05
"""Seconds of silence that show a whole stream to be complete, if its source waits for an answer.

The guest is stopped for as long.
"""

CLOSE_GRACE = 5.0
"""Seconds of silence that show a whole stream to be complete, if its source wants no answer.

Such a source closes the connection.
"""

DESCRIPTION_GRACE = 2.0
"""Seconds of silence after which a stream that may have ended without a description is given up.

This applies if its source waits for an answer.
"""

NO_PAGES = (
    ", before its first page; if the source uses several connections, receive with as many "
    "(--multifd-channels), or switch that off there (migrate_set_capability multifd off)"
)
"""The hint for a multifd source, which sends pages on other connections: this stream has none."""

UNCONFIRMED = (
    "the stream has no description of its devices (machine option suppress-vmdesc), so nothing "
    "confirms where it ends, and a source that waits for an answer gets none: migrate without the "
    "capability return-path, or to a file that you convert or send on"
)

UNKNOWN_END = (
    "nothing says where the stream ends: it describes no devices, and what follows is not all "
    "zeros; convert it with the option --length, and receive that"
)


class EndOfStream:
    """The end of the stream that `reader` parses from the channel."""

    def __init__(self, channel: Channel, reader: StreamReader, answers: Answers) -> None:
        self._channel = channel
        self._reader = reader
        self._answers = answers

    def wait(self, ready: Callable[[float | None], set[int]]) -> set[int]:
        """Wait for more; return an empty set if nothing arrives and the stream is whole.

        `ready` returns the descriptors that are ready within some seconds (None: no limit). Raises
        StreamError if the stream may have ended, but nothing confirms it.
        """
        rest = self._reader.rest
        if rest is None:
            return ready(None)
        if self._reader.whole:
            return ready(self._silence())
        found = ready(DESCRIPTION_GRACE)
        if found or not self._answers.wanted:
            return found or ready(None)
        kept = rest.kept
        abort = word_on_wire(Word.ABORT, framed=False)
        if kept.read(max(0, kept.size - len(abort)), len(abort)) == abort:
            raise ChannelError("the source took the guest back")
        if rest.bare():
            raise StreamError(UNCONFIRMED, offset=self._reader.position)
        return ready(None)

    def _silence(self) -> float:
        """Return the seconds of silence behind a whole stream that show it to be complete."""
        if not self._answers.wanted:
            return CLOSE_GRACE
        # A source that confirms accepts no promise before it has sent everything.
        return 0.0 if self._answers.peer is Peer.CONFIRMING else ENDING_GRACE

    def last_events(self, *, any_pages: bool) -> list[events.Event]:
        """Return the last events, when nothing more arrives; `any_pages`: some have arrived.

        Raises StreamError if the stream has not ended, or not in a way that can be relied on.
        """
        found = self._close(any_pages)
        behind = self._reader.behind
        if behind and not stat.S_ISREG(os.fstat(self._channel.fileno()).st_mode):
            # The guest may have forged the end, and the source been cut off behind it.
            message = f"{behind} bytes behind what looked like the end of the stream"
            raise StreamError(message, offset=self._reader.end)
        if self._reader.guessed:
            raise StreamError(UNKNOWN_END, offset=self._reader.end)
        if self._answers.wanted and not any(isinstance(e, events.Description) for e in found):
            raise StreamError(UNCONFIRMED, offset=self._reader.end)
        for event in found:
            refuse(event)
        return found

    def _close(self, any_pages: bool) -> list[events.Event]:
        try:
            return self._reader.close()
        except StreamError as error:
            if not any_pages:
                error.message += NO_PAGES
            raise
