"""A pair of relays in one process, between sockets that a test holds."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path
from typing import Any

from vmferry.relay.parameters import RelayParameters, Side
from vmferry.relay.run import Relay, run_relay

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pair:
    """A near and a far relay, and the socket that the far one connects to.

    `link`: the URI that the near relay connects to, if that is not the far one. `near` and `far`
    are options of one of the two, all others of both.
    """

    def __init__(
        self,
        folder: Path,
        *,
        link: str | None = None,
        near: dict[str, Any] | None = None,
        far: dict[str, Any] | None = None,
        listens: bool = True,
        **options: Any,
    ) -> None:
        self.folder = folder
        self._listens = listens
        self.lines: list[str] = []
        self.far_uri = f"unix:{folder}/link.sock"
        self.near = RelayParameters(
            listen=f"unix:{folder}/source.sock",
            connect=link or self.far_uri,
            side=Side.NEAR,
            **{"one_way": True, **options, **(near or {})},
        )
        self.far = RelayParameters(
            listen=self.far_uri,
            connect=f"unix:{folder}/destination.sock",
            side=Side.FAR,
            **{**options, **(far or {})},
        )
        self.relays: list[Relay] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.listener: socket.socket | None = None

    async def start(self) -> None:
        """Start both relays, and listen as the destination unless another program does."""
        if self._listens:
            self.listen()
        await self.start_far()
        await self.start_near()

    async def start_far(self) -> None:
        """Start the far relay alone."""
        await self._start(self.far)

    async def start_near(self) -> None:
        """Start the near relay alone."""
        await self._start(self.near)

    async def _start(self, parameters: RelayParameters) -> None:
        ready = asyncio.Event()
        running = run_relay(parameters, self.lines.append, partial(self._started, ready))
        task, listens = asyncio.create_task(running), asyncio.create_task(ready.wait())
        self.tasks.append(task)
        await asyncio.wait([task, listens], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            listens.cancel()
            task.result()

    def _started(self, ready: asyncio.Event, relay: Relay) -> None:
        self.relays.append(relay)
        ready.set()

    def listen(self) -> None:
        """Listen as the destination does."""
        if self.listener is not None:
            self.listener.close()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder}/destination.sock")
        self.listener.listen(64)
        self.listener.setblocking(False)

    async def connect(self) -> Ends:
        """Connect as a source."""
        return await asyncio.open_unix_connection(f"{self.folder}/source.sock")

    async def accept(self) -> Ends:
        """Return the next connection that arrives at the destination."""
        assert self.listener is not None
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        return await asyncio.open_unix_connection(sock=sock)

    async def stop(self) -> None:
        """End both relays."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.listener is not None:
            self.listener.close()
