"""Test what a relay sees of the stream that passes, and how it acts on that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol.wire.marks import SectionType
from vmferry.relay import watch as watch_module
from vmferry.relay.blocks import BLOCK_SIZE, Buffers
from vmferry.relay.session import Session
from vmferry.relay.view import StreamView

from tests import streams
from tests.relay.pair import Ends, Pair
from tests.relay.test_pair import run, said

CUTS = st.lists(st.integers(300, 20_000), min_size=1, max_size=6)
RAM = sum(block.length for block in streams.BLOCKS)
WITH_ANSWERS = streams.to_bytes(
    [
        *streams.opening(answers=True),
        *streams.zeros(),
        *streams.ram_part(streams.page_run(0, range(100))),
        *streams.ram_part(streams.page_run(0, range(3, 50))),
        *streams.closing(),
    ]
)
DESCRIPTION = WITH_ANSWERS.rindex(b"\0" + bytes([SectionType.VMDESCRIPTION]))
"""Offset of the EOF byte, which the description follows."""

END_OF_RAM = WITH_ANSWERS.index(streams.to_bytes(streams.DEVICES[:1]))


def viewed(data: bytes, cuts: list[int]) -> StreamView:
    """Return the view of a stream that arrives in pieces."""
    view, at = StreamView(), 0
    for number in range(len(data)):
        size = cuts[number % len(cuts)]
        view.feed(memoryview(data)[at : at + size], float(number))
        at += size
        if at >= len(data):
            break
    return view


@given(CUTS)
def test_rounds_and_pages(cuts: list[int]) -> None:
    """Broken: the progress of a relay would be that of another migration."""
    view = viewed(WITH_ANSWERS, cuts)
    assert view.error is None
    assert (view.total, view.machine) == (RAM, "pc-q35-7.2")
    assert view.pages == {"zero": RAM // 4096, "plain": 147}
    assert [done.pages for done in view.finished] == [RAM // 4096, 100]
    assert (view.round, view.pages_in_round) == (2, 47)
    assert view.eof == DESCRIPTION + 1


@given(CUTS)
def test_every_kind_of_page(cuts: list[int]) -> None:
    """Broken: a stream with XBZRLE or COMPRESS pages would count as a broken one."""
    view = viewed(streams.to_bytes(streams.every_event()), cuts)
    assert view.error is None
    assert view.ended
    assert {kind for kind, count in view.pages.items() if count} >= {"plain", "zero", "xbzrle"}


@settings(max_examples=50)
@given(st.integers(0, len(WITH_ANSWERS) - 1))
def test_half_a_stream_has_not_ended(size: int) -> None:
    """Broken: a source could be kept waiting, or another one run on, for an end that is none."""
    view = viewed(WITH_ANSWERS[:size], [4096])
    assert not view.ended
    view.close()
    assert view.error is not None


def sessions(pair: Pair) -> list[Session]:
    """Return the sessions of both relays, the far one's first."""
    found = [relay.session for relay in pair.relays]
    assert None not in found
    return [session for session in found if session is not None]


async def both(pair: Pair) -> tuple[Ends, Ends]:
    """Return a connection of a source, and where it ends at the destination."""
    return await pair.connect(), await pair.accept()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what is to come true."""
    while not condition():
        await asyncio.sleep(0.01)


def has_ended(session: Session) -> bool:
    """Return whether the watch of a session has seen the end of the stream."""
    return session.watch.view is not None and session.watch.view.ended


def test_both_sides_see_the_stream(tmp_path: Path) -> None:
    """Broken: nobody would see how far a migration is."""

    async def test(pair: Pair) -> None:
        (_, writer), (far_reader, far_writer) = await both(pair)
        writer.write(WITH_ANSWERS)
        assert await far_reader.readexactly(len(WITH_ANSWERS)) == WITH_ANSWERS
        for session in sessions(pair):
            await until(partial(has_ended, session))
            assert session.watch.view is not None
            assert session.watch.view.pages["plain"] == 147
        assert sessions(pair)[1].watch.zstd is not None
        for one in (writer, far_writer):
            one.close()

    run(test, lambda: Pair(tmp_path, near={"one_way": False}))


def test_a_broken_stream_is_named_on_both_sides(tmp_path: Path) -> None:
    """Broken: people would not know which of the four programs is at fault."""
    place = WITH_ANSWERS.index(b"pc.ram") + 500
    damaged = bytearray(WITH_ANSWERS)
    damaged[place : place + 40] = b"\xff" * 40

    async def test(pair: Pair) -> None:
        (_, writer), (far_reader, far_writer) = await both(pair)
        writer.write(damaged)
        assert await far_reader.readexactly(len(damaged)) == damaged
        await said(pair, "the source sends a broken stream: offset ")
        await said(pair, "the near relay sends a broken stream: offset ")
        for one in (writer, far_writer):
            one.close()

    run(test, lambda: Pair(tmp_path))


def test_what_is_encrypted_is_said_once(tmp_path: Path) -> None:
    """Broken: people would wait for progress, and pay for compression that gains nothing."""

    async def test(pair: Pair) -> None:
        writers = []
        for _ in range(3):
            (_, writer), (far_reader, far_writer) = await both(pair)
            writers += [writer, far_writer]
            writer.write(b"\x16\x03\x01\x02\x00" * 100)
            await far_reader.readexactly(500)
        assert sum("is encrypted" in line for line in pair.lines) == 2
        for one in writers:
            one.close()

    run(test, lambda: Pair(tmp_path))


def test_a_watch_that_is_behind_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a stream would pass no faster than it is read."""
    go_on = threading.Event()
    spent: list[int] = []
    feed = StreamView.feed

    def slow(self: StreamView, *rest: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            spent.append(1)
            time.sleep(2 * watch_module.CHEAP * BLOCK_SIZE)
        else:
            go_on.wait()
        feed(self, *rest)

    monkeypatch.setattr(StreamView, "feed", slow)
    monkeypatch.setattr(watch_module, "MOST_WAITING", 2)
    data = WITH_ANSWERS + bytes(8 << 20)

    async def test(pair: Pair) -> None:
        (_, writer), (far_reader, far_writer) = await both(pair)
        writer.write(data)
        assert await far_reader.readexactly(len(data)) == data
        await said(pair, "faster than it can be read")
        # Once on each side it was not known yet that this takes long.
        assert len(spent) <= 2
        go_on.set()
        for one in (writer, far_writer):
            one.close()

    run(test, lambda: Pair(tmp_path))


def test_a_fault_of_the_watch_ends_no_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: what only shows a migration would end it, and a source would take its guest back."""

    class Faulty(StreamView):
        def feed(self, *_: object) -> None:
            raise IndexError("of the view")

    monkeypatch.setattr(watch_module, "StreamView", Faulty)
    lines: list[str] = []
    watch = watch_module.StreamWatch(Buffers(), lines.append, "the source", samples=False)
    try:
        assert watch.see(0, memoryview(WITH_ANSWERS), None)
        assert not watch.see(0, memoryview(WITH_ANSWERS), None)
    finally:
        watch.close()
    assert lines == ["a fault of this relay, so nothing more is shown: IndexError('of the view')"]
    assert watch.doubt(len(WITH_ANSWERS)) is not None
