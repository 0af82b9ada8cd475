"""Open a channel for sending while the caller waits for other events, too.

Resolving a name, the answer of a peer, or the reader of a named pipe may take long.
"""

from __future__ import annotations

import threading

from .channel import Channel, connect
from .shared import Wakeup
from .uri import Exec, Fd, Uri


class Connecting:
    """An attempt to connect in a thread of its own; take its `result`, or call `abandon`."""

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._channel: Channel | None = None
        self._error: Exception | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self._done = Wakeup()
        if isinstance(uri, (Exec, Fd)):
            # These open at once, and an inherited descriptor has to be duplicated now.
            self._run()
        else:
            threading.Thread(target=self._run, name="vmferry-connect", daemon=True).start()

    def fileno(self) -> int:
        """Return the descriptor that is readable once `result` does not wait."""
        return self._done.fileno()

    def result(self) -> Channel:
        """Return the channel, once `fileno` is readable. Raises ChannelError."""
        self._done.close()
        if self._error is not None:
            raise self._error
        assert self._channel is not None
        return self._channel

    def abandon(self) -> None:
        """Close the channel, now or as soon as it is open, because the result is not wanted."""
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
            # `result` raises it in the caller.
            self._error = error
        with self._lock:
            self._channel = channel
            if self._abandoned and channel is not None:
                channel.abort()
        self._done.set()
