"""Test what a relay sees of the channels of multifd."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.protocol import events
from vmferry.protocol.pages.packets import hello, page_heads, sync_packet, zero_heads
from vmferry.protocol.wire.multifd import Compression
from vmferry.relay.multifd_view import MOST_EARLY, MultifdView
from vmferry.relay.session import Session
from vmferry.relay.view import StreamView

from tests import streams
from tests.relay.pair import Pair
from tests.relay.test_pair import run, said
from tests.relay.test_watch import both, sessions, until

PAGE = streams.PAGE
NAME = streams.BLOCKS[0].name.encode()
FLUSH = streams.to_bytes(streams.ram_part(events.MultifdFlush(0)))
OPENING = streams.to_bytes(streams.opening(answers=True))
CLOSING = streams.to_bytes(streams.closing())
CUTS = st.lists(st.integers(300, 300_000), min_size=1, max_size=5)


def packets(numbers: range) -> bytes:
    """Return packets with these pages of the first block."""
    offsets = np.array(numbers, np.uint64) * np.uint64(PAGE)
    heads = page_heads(NAME, PAGE, offsets, Compression.NONE)
    # Whatever a guest has in its memory, it is no head of a packet.
    pages = hello(bytes(16), 0).ljust(PAGE, b"\x11")
    return b"".join(head.tobytes() + int(head["header"]["normal"]) * pages for head in heads)


FIRST = hello(bytes(16), 0) + packets(range(130)) + sync_packet(PAGE, 1)
OFFSETS = np.arange(130, 160, dtype=np.uint64) * np.uint64(PAGE)
ZEROS = zero_heads(NAME, PAGE, OFFSETS, Compression.NONE).tobytes()
SECOND = packets(range(10, 60)) + sync_packet(PAGE, 2)


def feed(view: StreamView, channel: MultifdView, data: bytes, cuts: list[int]) -> None:
    """Have a view read what a channel sends, in pieces."""
    at = 0
    while at < len(data):
        size = cuts[at % len(cuts)]
        view.feed_channel(channel, memoryview(data)[at : at + size], 1.0)
        at += size


@given(CUTS)
def test_pages_and_rounds(cuts: list[int]) -> None:
    """Broken: with multifd nobody would see how far a migration is, or why it stalls."""
    view, channel = StreamView(), MultifdView()
    view.feed(memoryview(OPENING), 0.0)
    feed(view, channel, FIRST + ZEROS, cuts)
    view.feed(memoryview(FLUSH), 2.0)
    feed(view, channel, SECOND, cuts)
    view.feed(memoryview(FLUSH), 3.0)
    assert (view.error, view.channel_error) == (None, None)
    assert view.pages == {"plain": 180, "zero": 30}
    assert [done.pages for done in view.finished] == [160]
    # Nearly all of a round's bytes are in the channel.
    assert view.finished[0].size >= len(FIRST)
    assert (view.round, view.pages_in_round) == (1, 50)


@given(CUTS)
def test_a_channel_that_is_ahead_of_the_list_of_blocks(cuts: list[int]) -> None:
    """Broken: over a link of several connections, channels would not be read."""
    view, channel = StreamView(), MultifdView()
    feed(view, channel, FIRST, cuts)
    view.feed(memoryview(OPENING), 2.0)
    feed(view, channel, SECOND, cuts)
    assert view.pages["plain"] == 180


def test_a_channel_without_a_list_of_blocks_is_not_kept_for_ever() -> None:
    """Broken: whoever sends no list could fill the memory of a relay."""
    view, channel = StreamView(), MultifdView()
    feed(view, channel, hello(bytes(16), 0) + bytes(MOST_EARLY + 1), [1 << 20])
    assert view.channel_error is not None


def is_read(session: Session) -> bool:
    """Return whether the watch of a session has read everything that passed."""
    return session.watch.idle


@pytest.mark.parametrize("damaged", [False, True])
def test_both_sides_see_the_channels(tmp_path: Path, *, damaged: bool) -> None:
    """Broken: nobody would see how far a migration is, or which side damages a channel."""
    behind = b"\x55" * len(SECOND) if damaged else SECOND

    async def test(pair: Pair) -> None:
        (_, main), (far_main, far_writer) = await both(pair)
        main.write(OPENING)
        await far_main.readexactly(len(OPENING))
        (_, writer), (reader, other_writer) = await both(pair)
        for piece in (FIRST, behind):
            writer.write(piece)
            await reader.readexactly(len(piece))
            main.write(FLUSH)
            await far_main.readexactly(len(FLUSH))
        if damaged:
            await said(pair, "the source sends a broken stream: offset ")
            await said(pair, "the near relay sends a broken stream: offset ")
        for session in sessions(pair):
            view = session.watch.view
            assert view is not None
            await until(partial(is_read, session))
            assert view.pages["plain"] == (130 if damaged else 180)
            # The stream itself goes on, and so does what is known of its end.
            assert view.error is None
        main.write(CLOSING)
        await far_main.readexactly(len(CLOSING))
        for one in (main, far_writer, writer, other_writer):
            one.close()

    run(test, lambda: Pair(tmp_path))
