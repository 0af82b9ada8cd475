"""Talk QMP to a running QEMU, from any thread.

The library qemu.qmp implements the protocol; it runs in an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from ...transport.sockets import credentials_of_peer
from ..errors import GuestError

GREETING = 5.0
"""Seconds that a QEMU has to greet a client. It talks to one client of a monitor at a time."""
ANSWER = 60.0
"""Seconds that a QEMU has to answer a command; it may be busy with its devices meanwhile."""
_NO_GREETING = (
    f"no greeting within {GREETING:.0f} s; a QEMU talks to one client of a monitor at a time, so"
    " start it with a second -qmp"
)
T = TypeVar("T")

Listener = Callable[[str, dict[str, Any]], None]
"""Function that is called with the name and the data of an event, in the thread of the monitor."""


class QemuError(GuestError):
    """A QEMU that cannot be asked, or that refused; the message is one line.

    `kind`: the class that QMP gives the error, such as CommandNotFound; empty for others.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.kind = kind


class GoneError(QemuError):
    """The connection to a QEMU broke: it has ended, or it was killed."""


class Monitor:
    """A connection to the QMP socket at `path`. Raises QemuError if there is no QEMU to talk to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.process = 0
        """Process number of the QEMU; 0 if it is not known, as with another namespace."""
        self._qmp = QMPClient("vmferry")
        # The library logs errors that it also raises.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)
        self._listeners: list[Listener] = []
        self._events = EventListener()
        self._qmp.register_listener(self._events)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._hearing: asyncio.Task[None] | None = None
        self._closed = False
        try:
            self._run(self._connect(), GREETING, _NO_GREETING)
        except BaseException:
            self._stop()
            raise

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, self.path)
            self.process = credentials_of_peer(sock).pid
            await self._qmp.connect(sock)
        except ConnectError as error:
            sock.close()
            raise self._not_reached(error.exc) from error
        except (OSError, UnicodeError) as error:
            sock.close()
            raise self._not_reached(error) from error
        self._hearing = asyncio.create_task(self._hear())

    def _not_reached(self, error: Exception) -> QemuError:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        return QemuError(f"{self.path}: no QEMU to talk to: {reason}")

    def ask(self, command: str, /, **arguments: Any) -> Any:
        """Execute a QMP command and return its answer.

        Raises QemuError if QEMU refuses, and GoneError if it is gone.
        """
        return self._run(self._ask(command, arguments), ANSWER, f"no answer to {command}")

    async def _ask(self, command: str, arguments: dict[str, Any]) -> Any:
        try:
            return await self._qmp.execute(command, arguments or None)
        except ExecuteError as error:
            raise QemuError(f"QEMU refuses {command}: {error}", error.error_class) from error
        except (QMPError, OSError, EOFError) as error:
            raise GoneError(f"{self.path}: QEMU has gone ({command})") from error

    def give(self, name: str, fd: int) -> None:
        """Give QEMU a duplicate of a descriptor, which commands name `fd:NAME`.

        Raises QemuError.
        """
        self._run(self._give(name, fd), ANSWER, "no answer to getfd")

    async def _give(self, name: str, fd: int) -> None:
        try:
            self._qmp.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise GoneError(f"{self.path}: QEMU takes no descriptor: {error}") from error
        await self._ask("getfd", {"fdname": name})

    def take_back(self, name: str) -> None:
        """Have QEMU close a descriptor that it was given and no command has used."""
        with suppress(QemuError):
            self.ask("closefd", fdname=name)

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with each event from now on."""
        self._listeners = [*self._listeners, listener]

    def remove_listener(self, listener: Listener) -> None:
        """Call `listener` no more; nothing happens if it is not called anyway."""
        self._listeners = [one for one in self._listeners if one != listener]

    async def _hear(self) -> None:
        while True:
            event = await self._events.get()
            for listener in self._listeners:
                listener(str(event["event"]), dict(event.get("data", {})))  # type: ignore[call-overload]

    def _run(self, work: Coroutine[Any, Any, T], seconds: float, otherwise: str) -> T:
        """Return the result of `work`, which the thread of the monitor does."""
        if self._closed:
            work.close()
            raise GoneError(f"{self.path}: the connection was closed")
        limited = self._limited(work, seconds, otherwise)
        future = asyncio.run_coroutine_threadsafe(limited, self._loop)
        try:
            return future.result()
        except BaseException:
            # A signal may end the wait.
            future.cancel()
            raise

    async def _limited(self, work: Coroutine[Any, Any, T], seconds: float, otherwise: str) -> T:
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if done:
                return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        raise QemuError(f"{self.path}: {otherwise}")

    def close(self) -> None:
        """Close the connection; QEMU runs on."""
        if not self._closed:
            with suppress(QemuError):
                self._run(self._disconnect(), GREETING, "the connection does not end")
            self._stop()

    async def _disconnect(self) -> None:
        # Whatever breaks it off has done so already.
        with suppress(QMPError, OSError, EOFError):
            await self._qmp.disconnect()

    def _stop(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        """Run the event loop until it is stopped; this is the thread."""
        self._loop.run_forever()
        self._loop.run_until_complete(_end_other_tasks())
        self._loop.close()


async def _end_other_tasks() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
