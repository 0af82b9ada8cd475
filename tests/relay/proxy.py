"""A proxy on the link of two relays: it breaks connections, damages and keeps what passes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from vmferry.transport.uri import Unix, parse_uri


class Proxy:
    """Passes connections from one Unix socket to another."""

    def __init__(self, listen: str, connect: str) -> None:
        self._listen, self._connect = _path(listen), _path(connect)
        self.forward = bytearray()
        """Bytes that passed from the near relay to the far one."""
        self.breaks = 0
        self.mute = False
        """True while nothing passes from the far relay to the near one."""
        self.swallows = ""
        """Direction whose bytes are lost from now on: "forward" or "back"; empty: neither."""
        self._break_every = 0
        self._times = 0
        self._damage_at: int | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def break_after(self, size: int, times: int) -> None:
        """Break each connection after `size` more bytes, so many times in all."""
        self._break_every, self._times = size, times

    def break_now(self) -> None:
        """Break all connections, and pass everything on those that come."""
        self.swallows = ""
        self._break()

    def damage_at(self, position: int) -> None:
        """Change the byte at a position of what passes forward."""
        self._damage_at = position

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_unix_server(self._accepted, self._listen)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Break everything and accept nothing more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._break()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._connect)
        self._writers |= {writer, back}
        for pair in ((reader, back, True), (there, writer, False)):
            self._tasks.add(asyncio.create_task(self._pass(*pair)))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, forward: bool
    ) -> None:
        passed = 0
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self.swallows == ("forward" if forward else "back"):
                    continue
                if forward:
                    data = self._damaged(data)
                    self.forward += data
                elif self.mute:
                    continue
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if forward and self._times and passed >= self._break_every:
                    self._times -= 1
                    self.breaks += 1
                    self._break()
                    break
        writer.transport.abort()

    def _break(self) -> None:
        """Break all connections."""
        for one in self._writers:
            one.transport.abort()
        self._writers.clear()

    def _damaged(self, data: bytes) -> bytes:
        """Return the next bytes that pass forward, one of them changed if its turn has come."""
        at = None if self._damage_at is None else self._damage_at - len(self.forward)
        if at is None or not 0 <= at < len(data):
            return data
        self._damage_at = None
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _path(uri: str) -> str:
    parsed = parse_uri(uri)
    assert isinstance(parsed, Unix)
    return parsed.path
