"""A cut of the link while both relays are about to be done with a migration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from vmferry.relay.session import Session

from tests.relay.pair import Pair
from tests.relay.proxy import Proxy
from tests.relay.test_pair import exchange, run


async def come(condition: Callable[[], bool]) -> None:
    """Wait for what must come."""
    while not condition():
        await asyncio.sleep(0.01)


def sessions(pair: Pair) -> list[Session | None]:
    """Return the sessions of far and near relay."""
    return [relay.session for relay in pair.relays]


async def cut_at_the_end(pair: Pair, proxy: Proxy, direction: str) -> None:
    """Pass a migration, and lose the last words of one direction as the link is cut."""
    reader, writer = await pair.connect()
    far_reader, far_writer = await pair.accept()
    writer.write(b"guest")
    assert await far_reader.readexactly(5) == b"guest"
    far_writer.write(b"shut")
    far_writer.write_eof()
    assert await reader.read() == b"shut"
    far, near = sessions(pair)
    assert far is not None
    assert near is not None
    # The far relay has to know that its end arrived.
    await come(lambda: next(iter(far._channels.values())).outgoing.done)
    proxy.swallows = direction
    writer.write_eof()
    if direction == "back":
        assert await far_reader.read() == b""
        await come(lambda: not far._channels)
        assert near._channels
    else:
        await come(lambda: next(iter(near._channels.values())).outgoing.ended)
        await asyncio.sleep(0.05)
    proxy.break_now()
    await come(lambda: sessions(pair) == [None, None])
    for one in (writer, far_writer):
        one.close()
    assert not [line for line in pair.lines if "failed" in line]


def both_directions(folder: Path, direction: str) -> None:
    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{folder}/proxy.sock", pair.far_uri) as proxy:
            for _ in range(2):
                await cut_at_the_end(pair, proxy, direction)

    run(test, lambda: Pair(folder, link=f"unix:{folder}/proxy.sock"))


def test_the_last_acknowledgement_is_lost(tmp_path: Path) -> None:
    """Broken: the near relay would wait for ever, and pass no other migration."""
    both_directions(tmp_path, "back")


def test_the_end_of_the_source_is_lost(tmp_path: Path) -> None:
    """Broken: the destination would not see that its source has left."""
    both_directions(tmp_path, "forward")


def test_the_goodbye_is_lost(tmp_path: Path) -> None:
    """Broken: the far relay would hold its session, refuse the next one, and call it failed."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            reader, writer = await pair.connect()
            far_reader, far_writer = await pair.accept()
            far, near = sessions(pair)
            assert far is not None
            assert near is not None
            far_writer.write_eof()
            writer.write_eof()
            assert (await reader.read(), await far_reader.read()) == (b"", b"")
            said = near.say
            near.say = lambda record: None if near.leaving else said(record)  # type: ignore[method-assign]
            await come(lambda: near.leaving)
            proxy.break_now()
            await come(lambda: sessions(pair) == [None, None])
            for one in (writer, far_writer):
                one.close()
            assert not [line for line in pair.lines if "failed" in line]

    run(test, lambda: Pair(tmp_path, link=f"unix:{tmp_path}/proxy.sock"))


@pytest.mark.parametrize("again", [True, False], ids=["another near relay", "nobody"])
def test_a_near_relay_is_killed_when_all_is_done(tmp_path: Path, again: bool) -> None:
    """Broken: a migration that went well would count as a failed one, or the far relay would serve
    nobody until --reconnect is over."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            reader, writer = await pair.connect()
            far_reader, far_writer = await pair.accept()
            far, near = sessions(pair)
            assert far is not None
            assert near is not None
            far_writer.write_eof()
            assert await reader.read() == b""
            await come(lambda: next(iter(far._channels.values())).outgoing.done)
            # The near relay never hears that its end was taken, so it does not say that it leaves.
            proxy.swallows = "back"
            writer.write_eof()
            assert await far_reader.read() == b""
            await come(lambda: far.all_closed)
            near_task = pair.tasks.pop()
            near_task.cancel()
            await asyncio.gather(near_task, return_exceptions=True)
            pair.relays.pop()
            await proxy.close()
            if again:
                async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri):
                    await pair.start_near()
                    await exchange(pair, b"next", b"yes")
                    await come(lambda: sessions(pair) == [None, None])
            await come(lambda: pair.relays[0].session is None)
            for one in (writer, far_writer):
                one.close()
            assert not [line for line in pair.lines if "failed" in line]

    link, reconnect = f"unix:{tmp_path}/proxy.sock", 300.0 if again else 0.5
    secret = b"0123456789abcdef"
    run(test, lambda: Pair(tmp_path, link=link, secret=secret, reconnect=reconnect))
