"""A channel to send into, opened while its caller waits for other things, too.

A name may not be resolved, a peer not answer, and a named pipe not be read from, for long.
"""

from __future__ import annotations

import threading

from .channel import Channel, connect
from .shared import Wakeup
from .uri import Exec, Fd, Uri


class Connecting:
    """`connect` in a thread of its own. Take the `result`, or `abandon` it."""

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._channel: Channel | None = None
        self._error: Exception | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self._done = Wakeup()
        if isinstance(uri, (Exec, Fd)):
            # Nothing to wait for; and the descriptor is there now.
            self._run()
        else:
            threading.Thread(target=self._run, name="vmferry-connect", daemon=True).start()

    def fileno(self) -> int:
        """Readable once `result` does not wait."""
        return self._done.fileno()

    def result(self) -> Channel:
        """The channel, when `fileno` was readable. Raises ChannelError."""
        self._done.close()
        if self._error is not None:
            raise self._error
        assert self._channel is not None
        return self._channel

    def abandon(self) -> None:
        """Nobody waits any more: what has come, or still comes, is closed."""
        with self._lock:
            self._abandoned = True
            self._done.close()
            if self._channel is not None:
                self._channel.abort()

    def _run(self) -> None:
        channel = None
        try:
            channel = connect(self._uri)
        except Exception as error:
            # Whoever takes the result hears of it.
            self._error = error
        with self._lock:
            self._channel = channel
            if self._abandoned and channel is not None:
                channel.abort()
        self._done.set()
