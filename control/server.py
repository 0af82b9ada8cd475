"""Serve clients on the sockets of the service: several at once, with descriptor passing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque

from ..protocol.errors import VmferryError
from ..transport.unix_socket import UnixListener
from ..transport.uri import Tcp, Unix, UnknownSchemeError, UriError, parse_uri
from .command import Call
from .events import Event
from .messages import MessageReader, encode
from .service import Service
from .session import GREETING, Session

_log = logging.getLogger(__name__)

MAX_UNREAD = 8 << 20
"""Bytes that may wait for a client that does not read; with more the connection is dropped."""
MAX_CLIENTS = 64
RETRY = 0.5
"""Seconds until the next try where a client cannot be accepted, for lack of descriptors."""
_READ = 1 << 16
_MAX_FDS = 16


class ServerError(VmferryError, OSError):
    """The service cannot listen at this address; the message is one line."""

    def __str__(self) -> str:
        return str(self.args[0])


class Listening:
    """A listening socket at `unix:PATH` or `tcp:HOST:PORT`. Raises ServerError."""

    def __init__(self, address: str) -> None:
        self._named: UnixListener | None = None
        try:
            self.socket = self._open(address)
        except (OSError, UriError, UnicodeError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ServerError(f"{address}: {reason}") from error
        self.socket.setblocking(False)

    def _open(self, address: str) -> socket.socket:
        try:
            uri = parse_uri(address)
        except UnknownSchemeError:
            raise UriError(f"write unix:{address}, or tcp:HOST:PORT") from None
        if isinstance(uri, Tcp):
            family = socket.AF_INET6 if ":" in uri.host else socket.AF_INET
            return socket.create_server((uri.host, uri.port), family=family)
        if not isinstance(uri, Unix):
            raise UriError("not unix:PATH or tcp:HOST:PORT")
        self._named = UnixListener(uri.path, socket.SOMAXCONN)
        return self._named.socket

    @property
    def address(self) -> str:
        """Return the address, with the real port where 0 was requested."""
        if self.socket.family == socket.AF_UNIX:
            return str(Unix(self.socket.getsockname()))
        return str(Tcp(*self.socket.getsockname()[:2]))

    def close(self) -> None:
        """Stop listening, and remove the socket's file."""
        if self._named is not None:
            self._named.close()
        self.socket.close()


class Client:
    """One connection of a client."""

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self._socket = sock
        self._service = service
        self._session = Session(Call(service, self))
        self._reader = MessageReader()
        self._fds: deque[int] = deque()
        self._unsent = bytearray()
        self._stirred = asyncio.Event()
        self._sent = asyncio.Event()
        self._lost = False

    def take_fd(self) -> int | None:
        """Return a descriptor that the client passed, or None."""
        return self._fds.popleft() if self._fds else None

    async def serve(self) -> None:
        """Serve the client until it is gone, or the task is cancelled."""
        _log.info("a client connected")
        self._service.events.add_listener(self._tell)
        self._send(encode(GREETING))
        tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._write()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            _log.info("a client is gone")
            self._service.events.remove_listener(self._tell)
            await self._end(tasks)

    async def _end(self, tasks: tuple[asyncio.Task[None], ...]) -> None:
        try:
            for task in tasks:
                task.cancel()
            # An OSError among the results only means that the client is gone, so it is ignored.
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for fd in self._fds:
                os.close(fd)
            self._socket.close()

    async def _read(self) -> None:
        """Read and answer messages until the client is gone. Raises OSError if it breaks off."""
        while data := await self._receive():
            for message in self._reader.feed(data):
                answer = await self._session.answer(message)
                # Events that the command caused are sent before its answer.
                self._service.events.deliver()
                self._send(encode(answer))
                await self._sent.wait()
                # A client that asks without pause must not keep the others waiting.
                await asyncio.sleep(0)

    async def _receive(self) -> bytes:
        """Return what has arrived, at least a byte, or nothing at the end; store descriptors."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._socket, _READ, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await _ready(self._socket, write=False)
                continue
            if fds:
                # Descriptors that arrived earlier and were not taken are obsolete.
                while self._fds:
                    os.close(self._fds.popleft())
                self._fds.extend(fds)
            return data

    def _tell(self, event: Event) -> None:
        if self._session.negotiated:
            self._send(encode(event))

    def _send(self, data: bytes) -> None:
        self._unsent += data
        self._sent.clear()
        self._push()

    def _push(self) -> None:
        """Send as much as the client takes now; mark it lost if it is gone or reads too slowly."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
            self._sent.set()
        except BlockingIOError:
            self._lost = len(self._unsent) > MAX_UNREAD
            self._stirred.set()
        except OSError:
            self._lost = True
            self._stirred.set()

    async def _write(self) -> None:
        """Send what the client did not take at once, until it is lost."""
        while not self._lost:
            await self._stirred.wait()
            self._stirred.clear()
            if not self._lost:
                await _ready(self._socket, write=True)
                self._push()


class Server:
    """The server that accepts clients at the sockets for as long as the service runs."""

    def __init__(self, service: Service, sockets: list[socket.socket]) -> None:
        self._service = service
        self._sockets = sockets
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the service ends; raise what it raises."""
        accepting: list[asyncio.Task[None]] = []

        def ready() -> None:
            # Accept clients only now: a client that is greeted may ask a source to connect.
            accepting.extend(asyncio.create_task(self._accept(sock)) for sock in self._sockets)

        try:
            await self._service.run(ready)
        finally:
            tasks = (*accepting, *self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, sock: socket.socket) -> None:
        while True:
            # `loop.sock_accept` would lose a client that connects as it is cancelled.
            await _ready(sock, write=False)
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                _log.warning("no client can be accepted now: %s", error)
                await asyncio.sleep(RETRY)
                continue
            connection.setblocking(False)
            if len(self._tasks) >= MAX_CLIENTS:
                _log.warning("a client was refused: there are %d already", MAX_CLIENTS)
                connection.close()
                continue
            task = asyncio.create_task(Client(connection, self._service).serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _ready(sock: socket.socket, *, write: bool) -> None:
    """Wait until the socket is ready to be read, or to be written."""
    loop = asyncio.get_running_loop()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    ready = asyncio.Event()
    add(sock, ready.set)
    try:
        await ready.wait()
    finally:
        remove(sock)
