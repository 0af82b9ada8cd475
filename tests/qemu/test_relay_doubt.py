"""A real QEMU whose relay loses its link for ever at the end: never two guests (laws 5 and 8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from vmferry.relay.session import Session

from tests.qemu.machine import MANY_PAGES, Machine
from tests.relay.pair import Pair
from tests.relay.proxy import Proxy
from tests.relay.test_pair import run, said

Check = Callable[[Pair, Proxy, Machine, Machine], Awaitable[None]]


def migrate(
    version: str, folder: Path, check: Check, *options: str, max_bandwidth: int = 0
) -> None:
    """Begin to migrate a guest through a pair of relays, and check what becomes of it.

    `options`: those of the source that the destination lacks.
    """
    (folder / "relay").mkdir()
    proxy_uri = f"unix:{folder}/relay/proxy.sock"
    incoming = ("-incoming", f"unix:{folder}/relay/destination.sock")
    source = Machine(version, folder / "source", *options, code=MANY_PAGES)
    destination = Machine(version, folder / "destination", *incoming, code=MANY_PAGES)

    async def whole(pair: Pair) -> None:
        async with Proxy(proxy_uri, pair.far_uri) as proxy:
            uri = f"unix:{folder}/relay/source.sock"
            await asyncio.to_thread(source.begin_migration, uri)
            await check(pair, proxy, source, destination)

    def pair() -> Pair:
        folder_of_pair, near = folder / "relay", {"one_way": False}
        return Pair(folder_of_pair, link=proxy_uri, near=near, listens=False, reconnect=1.0)

    try:
        source.wait_for_beats()
        source.enable("return-path")
        limits = {"downtime-limit": 2000, "max-bandwidth": max_bandwidth}
        source.ask("migrate-set-parameters", **limits)
        run(whole, pair)
    finally:
        source.stop()
        # A destination whose migration failed has ended by itself.
        with suppress(EOFError):
            destination.stop()


async def near_session(pair: Pair) -> Session:
    """Return the session of the near relay, once there is one."""
    while (session := pair.relays[1].session) is None:
        await asyncio.sleep(0.01)
    return session


async def runs(machine: Machine) -> bool:
    """Return whether a QEMU runs its guest."""
    found: bool = (await asyncio.to_thread(machine.ask, "query-status"))["running"]
    return found


async def comes_to_run(machine: Machine) -> None:
    """Wait until a QEMU runs its guest."""
    while not await runs(machine):
        await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
def test_the_source_waits_while_its_guest_runs_there(version: str, tmp_path: Path) -> None:
    """Broken: the source takes its guest back, and two of them run."""

    async def check(pair: Pair, proxy: Proxy, source: Machine, destination: Machine) -> None:
        near = await near_session(pair)
        while near.watch.view is None:
            await asyncio.sleep(0.01)
        # The destination runs the guest, and what it says of that gets lost.
        proxy.mute = True
        await comes_to_run(destination)
        while not near.watch.view.ended:
            await asyncio.sleep(0.01)
        await proxy.close()
        await said(pair, "the destination may have the whole guest: look there")
        beats = source.beats()
        await asyncio.to_thread(destination.wait_for_beats)
        assert not await runs(source)
        assert source.beats() == beats
        # The user has not looked, and ends the relay: the source is told that it has failed.
        await pair.stop()
        await comes_to_run(source)

    migrate(version, tmp_path, check)


@pytest.mark.timeout(300)
def test_the_source_runs_on_before_the_end(version: str, tmp_path: Path) -> None:
    """Broken: no guest runs, although it is certain that the destination lacks the end."""

    async def check(pair: Pair, proxy: Proxy, source: Machine, _: Machine) -> None:
        near = await near_session(pair)
        while near.watch.view is None or not near.watch.view.pages_in_round:
            await asyncio.sleep(0)
        await proxy.close()
        await comes_to_run(source)
        await asyncio.to_thread(source.wait_for_beats)
        await said(pair, "the link was cut for", 2)
        assert not any("look there" in line for line in pair.lines)

    migrate(version, tmp_path, check, max_bandwidth=1 << 20)


@pytest.mark.timeout(300)
def test_a_destination_that_fails_at_the_end_gives_the_guest_back(
    version: str, tmp_path: Path
) -> None:
    """Broken: law 5; after the most usual of all failures no guest runs until somebody looks."""

    async def check(pair: Pair, _: Proxy, source: Machine, __: Machine) -> None:
        await said(pair, "a source has connected")
        while (await asyncio.to_thread(source.ask, "query-migrate")).get("status") != "failed":
            await asyncio.sleep(0.02)
        await comes_to_run(source)
        await asyncio.to_thread(source.wait_for_beats)
        assert not any("look there" in line for line in pair.lines)

    # The destination has no such device, so it refuses its state, which follows all of RAM.
    migrate(version, tmp_path, check, "-device", "virtio-rng-pci")
