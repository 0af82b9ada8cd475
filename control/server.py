"""The sockets of the service: clients come and go, several at once, and may pass descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque

from ..transport.uri import Tcp, Unix, UriError, parse_uri
from .commands import Call
from .events import Event
from .messages import MessageReader, encode
from .service import Service
from .session import GREETING, Session

MAX_UNREAD = 8 << 20
"""Bytes that may wait for a client that does not read; with more it is given up."""
MAX_CLIENTS = 64
_READ = 1 << 16
_MAX_FDS = 16


class ServerError(OSError):
    """Clients cannot be waited for there; one line."""

    def __str__(self) -> str:
        return str(self.args[0])


def open_socket(address: str) -> socket.socket:
    """A listening socket at `unix:PATH` or `tcp:HOST:PORT`. Raises ServerError."""
    try:
        uri = parse_uri(address)
        if isinstance(uri, Tcp):
            family = socket.AF_INET6 if ":" in uri.host else socket.AF_INET
            sock = socket.create_server((uri.host, uri.port), family=family)
        elif isinstance(uri, Unix):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(uri.path)
            sock.listen()
        else:
            raise ServerError(f"{address}: not unix:PATH or tcp:HOST:PORT")
    except (OSError, UriError, UnicodeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ServerError(f"{address}: {reason}") from error
    sock.setblocking(False)
    return sock


def address_of(sock: socket.socket) -> str:
    """Where it listens, with the real port where 0 was asked for."""
    if sock.family == socket.AF_UNIX:
        return str(Unix(sock.getsockname()))
    return str(Tcp(*sock.getsockname()[:2]))


def close_socket(sock: socket.socket) -> None:
    """Close a listening socket; its path goes with it."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else None
    sock.close()
    if path and os.path.exists(path):
        os.unlink(path)


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self._socket = sock
        self._service = service
        self._session = Session(Call(service, self))
        self._reader = MessageReader()
        self._fds: deque[int] = deque()
        self._unsent = bytearray()
        self._stirred = asyncio.Event()
        self._sent = asyncio.Event()

    def take_fd(self) -> int | None:
        """A descriptor that it passed; None: it passed none."""
        return self._fds.popleft() if self._fds else None

    async def serve(self) -> None:
        """Until it goes away, or the task is cancelled."""
        self._service.events.add_listener(self._tell)
        writing = asyncio.create_task(self._write())
        self._send(encode(GREETING))
        reading = asyncio.create_task(self._read())
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._service.events.remove_listener(self._tell)
            await self._end(reading, writing)

    async def _end(self, reading: asyncio.Task[None], writing: asyncio.Task[None]) -> None:
        """What was answered still goes out, if the client reads."""
        if not writing.done():
            await asyncio.wait((asyncio.create_task(self._sent.wait()), writing), timeout=1)
        for task in (reading, writing):
            task.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)
        for fd in self._fds:
            os.close(fd)
        self._socket.close()

    async def _read(self) -> None:
        """Until the client goes away (or OSError)."""
        while data := await self._receive():
            for message in self._reader.feed(data):
                answer = await self._session.answer(message)
                # What the command brought about is heard of before its answer.
                self._service.events.deliver()
                self._send(encode(answer))
                await self._sent.wait()

    async def _receive(self) -> bytes:
        """What is there, at least a byte; empty at the end. Descriptors are put aside."""
        loop = asyncio.get_running_loop()
        if self._socket.family != socket.AF_UNIX:
            return await loop.sock_recv(self._socket, _READ)
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._socket, _READ, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await _readable(self._socket)
                continue
            if fds:
                # Those that came before and that nobody took are not meant any more.
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
        self._stirred.set()

    async def _write(self) -> None:
        """Until the client does not take any more (or OSError)."""
        loop = asyncio.get_running_loop()
        while len(self._unsent) <= MAX_UNREAD:
            await self._stirred.wait()
            self._stirred.clear()
            data, self._unsent = self._unsent, bytearray()
            await loop.sock_sendall(self._socket, data)
            if not self._unsent:
                self._sent.set()


class Server:
    """Takes clients at the sockets for as long as the service runs."""

    def __init__(self, service: Service, sockets: list[socket.socket]) -> None:
        self._service = service
        self._sockets = sockets
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the service ends; raises what it raises."""
        accepting = [asyncio.create_task(self._accept(sock)) for sock in self._sockets]
        try:
            await self._service.run()
        finally:
            for task in (*accepting, *self._tasks):
                task.cancel()
            await asyncio.gather(*accepting, *self._tasks, return_exceptions=True)

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(sock)
            if len(self._tasks) >= MAX_CLIENTS:
                connection.close()
                continue
            task = asyncio.create_task(Client(connection, self._service).serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
