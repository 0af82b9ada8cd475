"""The ways in which pages of a channel get to their places in memory."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Pipe

import numpy as np
import numpy.typing as npt
import pytest
from vmferry.guest.errors import GuestError
from vmferry.guest.mapping import is_hole, map_block
from vmferry.guest.parts import RamBlock
from vmferry.protocol.pages import packets
from vmferry.protocol.wire.multifd import Compression
from vmferry.receiver.multifd.channel import ChannelInput, ChannelSetup
from vmferry.receiver.multifd.sync import Steps
from vmferry.transport.channel import Channel

PAGE = 4096
COUNT = 2000
PLACES = [
    [*range(8, 128)],
    [*range(300, 428)],
    [*range(4), *range(700, 800)],
    [*range(428, 440), *range(900, 1900, 15)],
    [*range(100, 160)],
]
"""Numbers of the pages of each packet: all in one run, of which some exist, or in many."""


@pytest.fixture
def block() -> Iterator[RamBlock]:
    """Return RAM of which no page exists."""
    fd = os.memfd_create("ram")
    os.ftruncate(fd, COUNT * PAGE)
    yield RamBlock("ram", COUNT * PAGE, PAGE, fd)
    os.close(fd)


def content(packet: int, count: int) -> npt.NDArray[np.uint8]:
    """Return the pages of a packet."""
    return np.random.default_rng(packet).integers(1, 256, (count, PAGE), np.uint8)


def channel_bytes() -> bytes:
    """Return the bytes of a channel with these packets."""
    data = packets.hello(bytes(16), 0)
    for number, pages in enumerate(PLACES):
        offsets = np.array(pages, np.uint64) * np.uint64(PAGE)
        heads = packets.page_heads(b"ram", PAGE, offsets, Compression.NONE)
        heads["header"]["number"] = number
        data += heads.tobytes() + content(number, len(pages)).tobytes()
    return data + packets.sync_packet(PAGE, len(PLACES))


def expected() -> npt.NDArray[np.uint8]:
    """Return the memory that they build."""
    ram = np.zeros((COUNT, PAGE), np.uint8)
    for number, pages in enumerate(PLACES):
        ram[pages] = content(number, len(pages))
    return ram


def receive(block: RamBlock) -> None:
    """Receive the channel into memory, in this process."""
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        steps, (near, far) = Steps.create(1), Pipe()
        for close in (steps.close, near.close, far.close):
            stack.callback(close)
        feeder = threading.Thread(target=_feed, args=(ours,), daemon=True)
        feeder.start()
        setup = ChannelSetup(0, steps.signals, steps.go[0], steps.counters[0])
        channel = Channel(theirs.detach(), "channel")
        # The main channel is at its sync point, and then at its end.
        os.eventfd_write(steps.go[0].fileno(), 1)
        ending = threading.Thread(target=_end, args=(steps,), daemon=True)
        ending.start()
        try:
            ChannelInput(near, channel, setup, (block,)).run()
        finally:
            # Otherwise a feeder whose bytes nobody takes would wait for ever.
            channel.abort()
            os.eventfd_write(steps.signals.ended.fileno(), 1)
            ending.join()
            feeder.join()


def _feed(to: socket.socket) -> None:
    try:
        to.sendall(channel_bytes())
        to.shutdown(socket.SHUT_WR)
    except OSError:
        # The receiver has failed, which is what some tests want.
        return


def _end(steps: Steps) -> None:
    os.eventfd_read(steps.signals.ended.fileno())
    os.eventfd_write(steps.signals.finish.fileno(), 1)


def test_pages_that_exist_and_pages_that_do_not(block: RamBlock) -> None:
    """Broken: pages would be lost, old or displaced, or pages be made that nobody sent."""
    receive(block)
    # Before a look at the memory, which makes all pages.
    never_sent = [(4, 8), (160, 300), (440, 700), (1900, COUNT)]
    assert all(is_hole(block, start * PAGE, end * PAGE) for start, end in never_sent)
    assert (map_block(block).reshape(-1, PAGE) == expected()).all()


@pytest.mark.parametrize("before", [0, 1, 50_000])
def test_memory_that_takes_no_writes(
    before: int, block: RamBlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a guest in huge pages, which can only be mapped, could not arrive, or lose what was
    in the pipe when that was found out."""
    splice, done = os.splice, 0

    def refuse(source: int, target: int, count: int, **options: int) -> int:
        nonlocal done
        if not options:
            return splice(source, target, count)
        if done >= before:
            raise OSError(22, "Invalid argument")
        moved = splice(source, target, min(count, before - done), **options)
        done += moved
        return moved

    monkeypatch.setattr(os, "splice", refuse)
    receive(block)
    assert (map_block(block).reshape(-1, PAGE) == expected()).all()


def test_no_memory_left(block: RamBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a traceback, or a guest whose page is missing."""
    splice = os.splice

    def refuse(source: int, target: int, count: int, **options: int) -> int:
        if options:
            raise OSError(28, "No space left on device")
        return splice(source, target, count)

    monkeypatch.setattr(os, "splice", refuse)
    with pytest.raises(GuestError, match=r"^no memory for block ram \(disk full\?\): No space"):
        receive(block)
