"""One connection of the link: records and frames in both directions, until it breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from threading import local
from typing import Protocol

import zstandard

from ..protocol.errors import StreamError
from ..protocol.formats.link import (
    HEAD_SIZE,
    Alive,
    Data,
    LinkError,
    Record,
    build_record,
    content_size,
    read_record,
)
from ..protocol.formats.stored_frames import StoredFrame
from ..protocol.wire.link import MAX_RECORD
from .blocks import BLOCK_SIZE, MAX_FRAME, Arrived, Block, Buffers
from .outbox import Outbox
from .sockets import Socket

ALIVE_EVERY = 2.0
"""Seconds without anything to send after which ALIVE is sent."""
SILENCE = 10.0
"""Seconds without anything from the other end after which the connection counts as cut."""

_threads = local()


class Arrivals(Protocol):
    """The interface of a session, as a connection of the link uses it for what arrives."""

    def arrived_record(self, record: Record) -> None:
        """Handle a record. Raises LinkError."""

    def arrived_block(self, channel: int, block: Arrived) -> None:
        """Handle a block. Raises LinkError."""

    def counted(self, received: int) -> None:
        """Count bytes that arrived over the link."""


async def send_record(sock: Socket, record: Record) -> None:
    """Send one record."""
    await sock.send([build_record(record)])


async def receive_record(sock: Socket) -> Record:
    """Return the next record. Raises EOFError at the end, LinkError, OSError."""
    head = bytearray(HEAD_SIZE)
    await sock.fill(memoryview(head))
    content = bytearray(content_size(head))
    await sock.fill(memoryview(content))
    return read_record(content)


class Carrier:
    """A connection of the link that both ends have agreed on."""

    def __init__(self, sock: Socket, outbox: Outbox, arrivals: Arrivals, buffers: Buffers) -> None:
        self._socket = sock
        self._outbox = outbox
        self._arrivals = arrivals
        self._buffers = buffers
        self._more = asyncio.Event()
        self._sent = time.monotonic()
        self._silent = False
        self._inflating: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def notify(self) -> None:
        """Look again for something to send."""
        self._more.set()

    async def run(self) -> None:
        """Carry until the connection ends. Raises LinkError, OSError or EOFError."""
        tasks: list[Awaitable[None]] = [self._send(), self._receive(), self._watch()]
        running = [asyncio.ensure_future(task) for task in [*tasks, self._failed]]
        try:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [*running, *self._inflating]:
                task.cancel()
            try:
                await asyncio.gather(*running, *self._inflating, return_exceptions=True)
            finally:
                self._socket.close()

    async def _send(self) -> None:
        while True:
            self._more.clear()
            pieces: list[memoryview | bytes] = [*self._outbox.next_records()]
            if self._silent:
                self._silent = False
                pieces.append(build_record(Alive()))
            block = self._outbox.next_block()
            if block is not None:
                await self._send_block(pieces, block)
            elif pieces:
                await self._socket.send(pieces)
            else:
                await self._more.wait()
                continue
            self._sent = time.monotonic()

    async def _send_block(self, pieces: list[memoryview | bytes], block: Block) -> None:
        block.carrier, block.sending = self, True
        try:
            await self._outbox.may_send(sum(map(len, block.pieces)))
            self._socket.keep_unsent(self._outbox.pace.unsent)
            started = time.perf_counter()
            await self._socket.send([*pieces, *block.pieces])
            self._outbox.sent(block, time.perf_counter() - started)
        finally:
            block.sending = False

    async def _watch(self) -> None:
        """Have something sent from time to time, and notice when nothing arrives."""
        while True:
            await asyncio.sleep(ALIVE_EVERY / 2)
            now = time.monotonic()
            if now - self._socket.heard > SILENCE:
                raise LinkError(f"nothing arrived over the link for {SILENCE:.0f} s")
            if now - self._sent > ALIVE_EVERY / 2:
                self._silent = True
                self._more.set()

    async def _receive(self) -> None:
        head, content = bytearray(HEAD_SIZE), bytearray(MAX_RECORD)
        while True:
            await self._socket.fill(memoryview(head))
            view = memoryview(content)[: content_size(head)]
            await self._socket.fill(view)
            record = read_record(view)
            self._arrivals.counted(HEAD_SIZE + len(view))
            if isinstance(record, Data):
                await self._receive_block(record)
            else:
                self._arrivals.arrived_record(record)

    async def _receive_block(self, data: Data) -> None:
        if not 0 < data.length <= BLOCK_SIZE or data.frame_size > MAX_FRAME:
            raise LinkError(f"a block of {data.length} bytes, in a frame of {data.frame_size}")
        buffer = self._buffers.take()
        view = memoryview(buffer)
        stored = StoredFrame(view[: data.length])
        likely = data.frame_size == stored.size
        pieces = stored.pieces if likely else [view[: data.frame_size]]
        await self._socket.fill(*pieces)
        self._arrivals.counted(data.frame_size)
        try:
            if likely and stored.check():
                self._put(data, Arrived(data.position, stored.content, buffer))
                return
        except StreamError as error:
            raise LinkError(str(error)) from None
        self._inflate(data, memoryview(b"".join(pieces)) if likely else pieces[0], buffer)

    def _put(self, data: Data, block: Arrived) -> None:
        if block.length != data.length:
            raise LinkError("a frame of the link does not hold what its record says")
        self._arrivals.arrived_block(data.channel, block)

    def _inflate(self, data: Data, frame: memoryview, buffer: bytearray) -> None:
        """Begin to decompress a frame; others arrive meanwhile."""
        task = asyncio.ensure_future(self._inflated(data, frame, buffer))
        self._inflating.add(task)
        task.add_done_callback(self._inflating.discard)

    async def _inflated(self, data: Data, frame: memoryview, buffer: bytearray) -> None:
        try:
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(None, decompress, frame)
            self._buffers.give(buffer)
            self._put(data, Arrived(data.position, memoryview(content)))
        except (LinkError, MemoryError, RuntimeError) as error:
            if not self._failed.done():
                self._failed.set_exception(error)


def decompress(frame: memoryview) -> bytes:
    """Return the content of a frame of at most BLOCK_SIZE bytes. Raises LinkError."""
    if not hasattr(_threads, "decompressor"):
        _threads.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(frame) > BLOCK_SIZE:
            raise LinkError("a frame of the link holds more than a block")
        content: bytes = _threads.decompressor.decompress(frame, BLOCK_SIZE)
        return content
    except zstandard.ZstdError as error:
        raise LinkError(f"a frame of the link is damaged: {error}") from None


def reason_of(error: Exception) -> str:
    """Return in words why a connection of the link ended or was not made."""
    if isinstance(error, EOFError):
        return "the other relay closed the connection"
    if isinstance(error, asyncio.TimeoutError):
        return "the other relay does not answer"
    return getattr(error, "strerror", None) or str(error)
