"""Test who has the guest when the link of a migration is gone for good (laws 5 and 8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from vmferry.protocol.return_path import pong, shut
from vmferry.relay import ending
from vmferry.relay.session import Session

from tests.relay.pair import Ends, Pair
from tests.relay.proxy import Proxy
from tests.relay.test_pair import is_broken, run, said
from tests.relay.test_watch import DESCRIPTION, END_OF_RAM, WITH_ANSWERS, both, until


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


@pytest.mark.parametrize("left", [False, True], ids=["had not left", "was lost on the way"])
def test_an_end_does_not_arrive_after_its_source_has_left(tmp_path: Path, left: bool) -> None:
    """Broken: a source that was cancelled while the link was cut runs its guest, and when the link
    is back, the destination would run it, too."""
    link = f"unix:{tmp_path}/proxy.sock"
    size = DESCRIPTION - 10

    async def test(pair: Pair) -> None:
        async with Proxy(link, pair.far_uri) as proxy:
            (_, writer), (far_reader, far_writer) = await both(pair)
            writer.write(WITH_ANSWERS[:size])
            assert await far_reader.readexactly(size) == WITH_ANSWERS[:size]
            main = sessions_of_near(pair).ending.main
            assert main is not None
            if left:
                proxy.swallows = "forward"
            else:
                await proxy.close()
            writer.write(WITH_ANSWERS[size:])
            if left:
                await until(lambda: main.outgoing.left == len(WITH_ANSWERS))
            writer.close()
            if left:
                await until(lambda: main.outgoing.ended)
                proxy.break_now()
            await said(pair, "the source left before its destination had answered")
            async with nullcontext() if left else Proxy(link, pair.far_uri):
                assert await far_reader.read() == b""
            far_writer.close()

    run(test, lambda: Pair(tmp_path, link=link, near={"one_way": False}))


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
