"""Test what a relay sees of the stream that passes, and how it acts on that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.protocol.return_path import pong, shut
from vmferry.protocol.wire.marks import SectionType
from vmferry.relay import ending
from vmferry.relay import watch as watch_module
from vmferry.relay.blocks import BLOCK_SIZE
from vmferry.relay.session import Session
from vmferry.relay.view import StreamView

from tests import streams
from tests.relay.pair import Ends, Pair
from tests.relay.proxy import Proxy
from tests.relay.test_pair import is_broken, run, said

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


# Who has the guest when the link is gone for good.


def cut(
    tmp_path: Path,
    test: Callable[[Pair, Ends, asyncio.StreamReader], Awaitable[None]],
    before: bytes,
    behind: bytes = b"",
) -> None:
    """Cut the link for ever when `before` is at the destination; the source then sends `behind`."""

    async def whole(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            source, (far_reader, far_writer) = await both(pair)
            source[1].write(before)
            assert await far_reader.readexactly(len(before)) == before
            await proxy.close()
            source[1].write(behind)
            await test(pair, source, far_reader)
            for one in (source[1], far_writer):
                one.close()

    run(whole, lambda: Pair(tmp_path, link=f"unix:{tmp_path}/proxy.sock", reconnect=0.5))


@pytest.mark.parametrize(
    "size",
    [DESCRIPTION + 1, DESCRIPTION + 40, len(WITH_ANSWERS)],
    ids=["EOF", "part of the description", "all"],
)
def test_a_source_whose_guest_may_run_there_is_kept(tmp_path: Path, size: int) -> None:
    """Broken: laws 5 and 8; the source takes its guest back while the destination runs it."""

    async def test(pair: Pair, source: Ends, far_reader: asyncio.StreamReader) -> None:
        await said(pair, "may have the whole guest: look there")
        # The far relay ends its side; a destination that lacks the end gives up then.
        assert await is_broken(far_reader)
        near = sessions_of_near(pair)
        for _ in range(3):
            before = len(pair.lines)
            await near.ending.give_up("the link was cut for 0.5 s")
            assert not near.over.is_set()
            assert len(pair.lines) == before
        assert not source[0].at_eof()
        # The user has looked: the destination does not run.
        await pair.stop()
        assert await is_broken(source[0])

    cut(tmp_path, test, WITH_ANSWERS[:size], WITH_ANSWERS[size:])


def sessions_of_near(pair: Pair) -> Session:
    """Return the session of the near relay."""
    found = pair.relays[1].session
    assert found is not None
    return found


@pytest.mark.parametrize("size", [5000, END_OF_RAM], ids=["in RAM", "all of RAM"])
def test_a_source_whose_end_has_not_left_runs_on(tmp_path: Path, size: int) -> None:
    """Broken: law 5; no guest runs although it is certain that the destination lacks the end."""

    async def test(pair: Pair, source: Ends, far_reader: asyncio.StreamReader) -> None:
        assert await is_broken(source[0])
        assert await is_broken(far_reader)
        await said(pair, "the link was cut for", 2)
        assert not any("look there" in line for line in pair.lines)

    cut(tmp_path, test, WITH_ANSWERS[:size], WITH_ANSWERS[size:])


def test_a_source_that_is_encrypted_is_kept(tmp_path: Path) -> None:
    """Broken: nobody knows whether the stream in it has ended, and two guests could run."""

    async def test(pair: Pair, source: Ends, _: asyncio.StreamReader) -> None:
        await said(pair, "cannot tell whether the destination has the whole guest")
        assert not source[0].at_eof()

    cut(tmp_path, test, b"\x16\x03\x01\x02\x00" * 1000)


def test_a_kept_source_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    """Broken: a relay would serve nobody any more after one migration was cancelled."""

    async def test(pair: Pair, source: Ends, _: asyncio.StreamReader) -> None:
        await said(pair, "look there")
        near = sessions_of_near(pair)
        source[1].close()
        await near.over.wait()

    cut(tmp_path, test, WITH_ANSWERS)


@dataclass(frozen=True)
class Last:
    """Last bytes that a destination gets before the link is gone, and its reaction at the end."""

    before: int
    answer: bytes
    closes: bool
    words: str
    near: str
    """Last line of the near relay."""
    runs_on: bool
    """True if the source may take its guest back."""


_ENDED = "the migration failed: the migration has ended there"
LASTS = {
    "has the guest": Last(
        *(len(WITH_ANSWERS), shut(0), True),
        *("the destination got the whole guest", "quit the source", False),
    ),
    "refuses the guest": Last(
        *(len(WITH_ANSWERS), shut(1), True),
        *("the destination did not get the whole guest", _ENDED, True),
    ),
    "dies": Last(
        *(len(WITH_ANSWERS), b"", True),
        *("the destination did not get the whole guest", _ENDED, True),
    ),
    "lacks the end": Last(
        *(DESCRIPTION - 10, b"", True),
        *("the destination did not get the whole guest", _ENDED, True),
    ),
    "lacks RAM and is silent": Last(
        *(5000, b"", False),
        *("the destination did not get the whole guest", _ENDED, True),
    ),
    "is silent": Last(
        *(len(WITH_ANSWERS), b"", False),
        *("whether the destination got the whole guest is not known", "look there", False),
    ),
}


@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS)
def test_a_far_relay_that_gave_up_says_what_became_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: Last
) -> None:
    """Broken: a late near relay would begin the migration anew, in the middle of the stream; or
    there would be two guests, or none, although the destination has said what it has."""
    link = f"unix:{tmp_path}/proxy.sock"
    monkeypatch.setattr(ending, "ANSWER", 0.5)

    async def test(pair: Pair) -> None:
        async with Proxy(link, pair.far_uri) as proxy:
            (reader, writer), (far_reader, far_writer) = await both(pair)
            writer.write(WITH_ANSWERS[: last.before])
            assert await far_reader.readexactly(last.before) == WITH_ANSWERS[: last.before]
            far_writer.write(pong(1))
            assert await reader.readexactly(len(pong(1))) == pong(1)
            await proxy.close()
            assert await is_broken(far_reader)
            far_writer.write(last.answer)
            if last.closes:
                far_writer.close()
            await said(pair, f"the link was cut for 0.2 s; {last.words}")
            async with Proxy(link, pair.far_uri):
                await said(pair, last.near)
                # No other connection was made to the destination.
                accepting = asyncio.create_task(pair.accept())
                await asyncio.sleep(0)
                assert not accepting.done()
                accepting.cancel()
                if last.runs_on:
                    assert await is_broken(reader)
                else:
                    assert sessions_of_near(pair).ending.held
            for one in (writer, far_writer):
                one.close()

    run(test, lambda: Pair(tmp_path, link=link, far={"reconnect": 0.2}))


def test_a_far_relay_that_was_started_again_begins_nothing(tmp_path: Path) -> None:
    """Broken: a destination would get the middle of a stream, and a source the answer to it."""
    link = f"unix:{tmp_path}/proxy.sock"

    async def test(pair: Pair) -> None:
        async with Proxy(link, pair.far_uri) as proxy:
            (reader, writer), (far_reader, far_writer) = await both(pair)
            writer.write(WITH_ANSWERS[:5000])
            await far_reader.readexactly(5000)
            await proxy.close()
            pair.tasks[0].cancel()
            await asyncio.gather(pair.tasks[0], return_exceptions=True)
            await pair.start_far()
            async with Proxy(link, pair.far_uri):
                await said(pair, "it does not know this migration")
                assert await is_broken(reader)
            for one in (writer, far_writer):
                one.close()

    run(test, lambda: Pair(tmp_path, link=link))
