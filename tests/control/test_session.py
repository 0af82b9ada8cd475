"""Clients and a service within this process: blockers, listeners, ten thousand commands."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from vmferry.control.command import Call
from vmferry.control.commands import COMMANDS, REFUSED
from vmferry.control.parameters import PARAMETERS
from vmferry.control.server import Listening, Server
from vmferry.control.service import Service
from vmferry.control.session import Session
from vmferry.guest.synthetic import SyntheticGuest

from tests.control.serving import Nobody


async def ask(session: Session, name: str, **arguments: Any) -> dict[str, Any]:
    return await session.answer({"execute": name, "arguments": arguments})


def test_negotiation(guest: SyntheticGuest) -> None:
    """Broken: a client would be told events, or heeded, before it said that it understands."""

    async def run() -> None:
        session = Session(Call(Service(guest), Nobody()))
        early = await session.answer({"execute": "query-status", "id": 7})
        assert early["error"]["class"] == "CommandNotFound"
        assert early["id"] == 7
        wrong = await ask(session, "qmp_capabilities", enable=["oob"])
        assert wrong["error"]["class"] == "GenericError"
        assert not session.negotiated
        assert await ask(session, "qmp_capabilities", enable=[]) == {"return": {}}
        again = await ask(session, "qmp_capabilities")
        assert again["error"]["class"] == "CommandNotFound"
        out_of_band = await session.answer({"exec-oob": "query-status"})
        assert "'exec-oob' is unexpected" in out_of_band["error"]["desc"]

    asyncio.run(run())


def test_blocked_guest(guest: SyntheticGuest) -> None:
    """Broken: a guest that cannot migrate would be tried all the same, or nobody would say why."""

    async def run() -> None:
        session = Session(Call(Service(guest), Nobody()))
        await ask(session, "qmp_capabilities")
        token = guest.add_blocker("a device is passed through")
        refused = await ask(session, "migrate", uri="exec:cat > /dev/null")
        assert refused["error"]["desc"] == "a device is passed through"
        shown = await ask(session, "query-migrate")
        assert shown["return"] == {"blocked-reasons": ["a device is passed through"]}
        guest.remove_blocker(token)
        assert (await ask(session, "query-migrate"))["return"] == {}

    asyncio.run(run())


def test_listeners_hear_what_clients_hear(guest: SyntheticGuest) -> None:
    """Broken: Python code beside the service would have to ask again and again."""
    heard: list[str] = []

    async def run() -> None:
        service = Service(guest)
        service.events.add_listener(lambda event: heard.append(event["event"]))
        session = Session(Call(service, Nobody()))
        await ask(session, "qmp_capabilities")
        wanted = [{"capability": "events", "state": True}]
        await ask(session, "migrate-set-capabilities", capabilities=wanted)
        await ask(session, "stop")
        await ask(session, "migrate", uri="exec:cat > /dev/null")
        while heard[-1:] != ["SHUTDOWN"]:
            status = (await ask(session, "query-migrate"))["return"]["status"]
            assert status in ("setup", "active", "completed")
            if status == "completed":
                service.quit("host-qmp-quit")
            await asyncio.sleep(0.01)
        await service.run()

    asyncio.run(run())
    assert heard[:2] == ["STOP", "MIGRATION"]
    assert heard[-2:] == ["MIGRATION", "SHUTDOWN"]
    assert "MIGRATION_PASS" in heard


def test_refused_by_name(guest: SyntheticGuest) -> None:
    """Broken: who resets the machine would be told that there is no such thing."""

    async def run() -> None:
        session = Session(Call(Service(guest), Nobody()))
        await ask(session, "qmp_capabilities")
        for name in REFUSED:
            answer = await ask(session, name)
            assert answer["error"]["class"] == "GenericError"
            assert REFUSED[name] in answer["error"]["desc"]
        names = {item["name"] for item in (await ask(session, "query-commands"))["return"]}
        assert names == set(COMMANDS)

    asyncio.run(run())


class Chaos:
    """Commands that nobody meant, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names = [name for name in COMMANDS if name != "quit"] + ["nope", *REFUSED]

    def value(self, depth: int = 0) -> Any:
        """Return anything that JSON can express."""
        pick = self._random
        simple: list[Callable[[], Any]] = [
            lambda: None,
            lambda: pick.random() < 0.5,
            lambda: pick.choice([0, 1, -1, 4096, 1 << 20, 1 << 63, -(1 << 64), 10**30]),
            lambda: pick.uniform(-1e3, 1e300),
            lambda: pick.choice(["", "a", "events", "xbzrle", "pre-switchover", "\0", "\ud800"]),
            lambda: (
                pick.choice(["exec:", "unix:", "tcp:", "fd:", "rdma:x", "foo"])
                + pick.choice(["", "true", "127.0.0.1:1", "/nonexistent/x", "7", "exit 1"])
            ),
        ]
        nested: list[Callable[[], Any]] = [
            lambda: [self.value(depth + 1) for _ in range(pick.randrange(3))],
            lambda: {self.word(): self.value(depth + 1) for _ in range(pick.randrange(3))},
            lambda: [{"capability": self.word(), "state": pick.random() < 0.5}],
        ]
        return pick.choice(simple + (nested if depth < 3 else []))()

    def word(self) -> str:
        """Return a text, mostly the name of an argument."""
        known = ["uri", "blk", "state", "capabilities", "capability", "value", "fdname", "detach"]
        return self._random.choice([*known, *PARAMETERS, "events", "nope"])

    def message(self) -> bytes:
        """Return a message that is a command, right or wrong, or none at all."""
        pick = self._random
        name = pick.choice(self._names)
        arguments = {self.word(): self.value() for _ in range(pick.randrange(3))}
        if name in COMMANDS and pick.random() < 0.7:
            arguments = {a.name: self.value() for a in COMMANDS[name].arguments[:3]}
        text = json.dumps({"execute": name, "arguments": arguments}).encode()
        broken: list[Callable[[], bytes]] = [
            lambda: text[: pick.randrange(len(text))] + b"\xff",
            lambda: bytes(pick.randrange(256) for _ in range(20)) + b'"\xff',
            lambda: json.dumps(self.value()).encode() + b"\n",
        ]
        return pick.choice(broken)() if pick.random() < 0.2 else text


async def talk(path: str, messages: int, seed: int) -> int:
    """Send so many messages from one client, and return how many answers arrived."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    writer.write(b'{"execute": "qmp_capabilities"}')
    chaos, answers = Chaos(seed), 0
    for number in range(messages):
        # After each, one that must be answered whatever came before.
        writer.write(chaos.message() + b'\xff{"execute": "query-status", "id": %d}' % number)
        await writer.drain()
        answer: dict[str, Any] = {}
        while answer.get("id") != number:
            answer = json.loads(await asyncio.wait_for(reader.readline(), 20))
            answers += "return" in answer or "error" in answer
            assert "internal error" not in answer.get("error", {}).get("desc", "")
        assert answer["return"]["status"] in ("running", "paused", "finish-migrate", "postmigrate")
    writer.close()
    await writer.wait_closed()
    return answers


def served(guest: SyntheticGuest, path: str, client: Callable[[], Awaitable[None]]) -> None:
    """Run a client beside a service, which then ends well."""

    async def run() -> None:
        listening = Listening(f"unix:{path}")
        service = Service(guest)
        serving = asyncio.create_task(Server(service, [listening.socket]).run())
        try:
            await client()
        finally:
            service.quit("host-qmp-quit")
            await serving
            listening.close()

    asyncio.run(run())


@pytest.mark.timeout(120)
def test_ten_thousand_commands(guest: SyntheticGuest, tmp_path: Path) -> None:
    """Broken: a client in error, or a hostile one, could end the service and its guest."""
    path = str(tmp_path / "qmp")

    async def clients() -> None:
        counts = await asyncio.gather(*(talk(path, 2500, seed) for seed in range(4)))
        assert sum(counts) > 15_000

    served(guest, path, clients)
    guest.resume()
    assert guest.verify() == []


def test_client_that_does_not_read(guest: SyntheticGuest, tmp_path: Path) -> None:
    """Broken: one client that sleeps would hold up the others, or fill the memory."""
    path = str(tmp_path / "qmp")

    async def clients() -> None:
        _, sleeper = await asyncio.open_unix_connection(path)
        sleeper.write(b'{"execute": "qmp_capabilities"}')
        sleeper.write(b'{"execute": "query-commands"}' * 2000)
        assert await asyncio.wait_for(talk(path, 50, 99), 20) > 50
        sleeper.transport.abort()

    served(guest, path, clients)
