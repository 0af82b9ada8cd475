"""Commands one by one: values that are clamped or refused, and what a refusal leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from vmferry.control.capabilities import CAPABILITIES
from vmferry.control.command import Call
from vmferry.control.messages import MessageReader
from vmferry.control.service import Service
from vmferry.control.session import Session
from vmferry.guest.synthetic import SyntheticGuest
from vmferry.protocol.section_events import DiskBlock
from vmferry.transport.settings import DOWNTIME_LIMIT

from tests import streams
from tests.control.serving import Nobody
from tests.disks import MIB, write_image

Ask = Callable[..., Awaitable[Any]]


def play(guest: SyntheticGuest, script: Callable[[Service, Ask], Awaitable[None]]) -> None:
    """Run a script on a service: `ask` gives a result, or the text of an error."""

    async def run() -> None:
        service = Service(guest)
        session = Session(Call(service, Nobody()))

        async def ask(name: str, **arguments: Any) -> Any:
            message = json.dumps({"execute": name, "arguments": arguments}).encode()
            (given,) = MessageReader().feed(message)
            answer = await session.answer(given)
            return answer["return"] if "return" in answer else answer["error"]["desc"]

        await ask("qmp_capabilities")
        try:
            await script(service, ask)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, service.outgoing.finish)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("command", "value", "parameter", "becomes"),
    [
        ("migrate_set_speed", -1, "max-bandwidth", 0),
        ("migrate_set_speed", -(1 << 63), "max-bandwidth", 0),
        ("migrate_set_speed", (1 << 63) - 1, "max-bandwidth", (1 << 63) - 1),
        ("migrate_set_downtime", -0.5, "downtime-limit", 0),
        ("migrate_set_downtime", 0.0015, "downtime-limit", 1),
        ("migrate_set_downtime", 3, "downtime-limit", 3000),
        ("migrate_set_downtime", 1e300, "downtime-limit", DOWNTIME_LIMIT.most),
        ("migrate-set-cache-size", 5000, "xbzrle-cache-size", 4096),
        ("migrate-set-cache-size", 1 << 20, "xbzrle-cache-size", 1 << 20),
    ],
)
def test_clamped(
    guest: SyntheticGuest, command: str, value: float, parameter: str, becomes: int
) -> None:
    """Broken: an old client's value would be refused, or set to something that it is not."""

    async def script(_: Service, ask: Ask) -> None:
        assert await ask(command, value=value) == {}
        assert (await ask("query-migrate-parameters"))[parameter] == becomes
        if parameter == "xbzrle-cache-size":
            assert await ask("query-migrate-cache-size") == becomes

    play(guest, script)


@pytest.mark.parametrize(
    ("command", "value", "said"),
    [
        ("migrate_set_speed", 1 << 63, "expects int64"),
        ("migrate_set_speed", "1M", "expected: integer"),
        # JSON has no such number; Python's client would write it all the same.
        ("migrate_set_downtime", float("nan"), "invalid keyword 'NaN'"),
        ("migrate_set_downtime", "1", "expected: number"),
        ("migrate-set-cache-size", 0, "Parameter 'value' is wrong"),
        ("migrate-set-cache-size", -4096, "Parameter 'value' is wrong"),
        ("migrate-set-cache-size", 4095, "Parameter 'value' is wrong"),
        ("migrate-set-cache-size", 1 << 62, "Parameter 'value' is wrong"),
    ],
)
def test_refused(guest: SyntheticGuest, command: str, value: object, said: str) -> None:
    """Broken: nonsense would be set; or its refusal would change what was set before."""

    async def script(_: Service, ask: Ask) -> None:
        before = await ask("query-migrate-parameters")
        assert said in await ask(command, value=value)
        assert await ask("query-migrate-parameters") == before

    play(guest, script)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_each_capability(guest: SyntheticGuest, name: str) -> None:
    """Broken: one could be switched on that does nothing, or is refused without a reason."""

    async def script(_: Service, ask: Ask) -> None:
        for state in (False, True):
            wanted = [{"capability": name, "state": state}]
            answer = await ask("migrate-set-capabilities", capabilities=wanted)
            reason = CAPABILITIES[name] if state else None
            shown = await ask("query-migrate-capabilities")
            assert {"capability": name, "state": state and reason is None} in shown
            if reason is None:
                assert answer == {}
            else:
                assert answer == f"Capability '{name}' cannot be switched on: {reason}"

    play(guest, script)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("foo:bar", "Parameter 'uri' expects a valid migration protocol"),
        ("rdma:host:1", "Parameter 'uri' expects a valid migration protocol"),
        ("nothing", "Parameter 'uri' expects a valid migration protocol"),
        ("tcp:nocolon", "'tcp:nocolon' is not tcp:HOST:PORT"),
        ("tcp:host:99999", "is not tcp:HOST:PORT"),
        ("unix:", "says nothing"),
        ("fd:nope", "File descriptor named 'nope' has not been found"),
        ("file:x,offset=y", "not a number of bytes"),
    ],
)
def test_wrong_uri(guest: SyntheticGuest, uri: str, said: str) -> None:
    """Broken: a client would wait for a migration that never began, or could begin no other."""

    async def script(service: Service, ask: Ask) -> None:
        statuses = []
        service.events.add_listener(lambda event: statuses.append(event["data"]["status"]))
        on = [{"capability": "events", "state": True}]
        await ask("migrate-set-capabilities", capabilities=on)
        error = await ask("migrate", uri=uri)
        assert said in error
        # As in QEMU 7.2.
        assert await ask("query-migrate") == {"status": "failed", "error-desc": error}
        service.events.deliver()
        assert statuses == ["setup", "failed"]
        assert (await ask("query-status"))["status"] == "running"
        assert await ask("migrate", uri="exec:cat > /dev/null") == {}

    play(guest, script)


def test_not_while_one_is_under_way(guest: SyntheticGuest) -> None:
    """Broken: a migration would change under way, or two would send one guest."""

    async def script(service: Service, ask: Ask) -> None:
        await ask("migrate_set_speed", value=100_000)
        await ask("migrate", uri="exec:cat > /dev/null")
        # In setup by now, or active.
        off = [{"capability": "xbzrle", "state": True}]
        for command, arguments in (
            ("migrate-set-capabilities", {"capabilities": off}),
            ("migrate", {"uri": "exec:cat > /dev/null"}),
        ):
            in_progress = "There's a migration process in progress"
            assert await ask(command, **arguments) == in_progress
        assert service.outgoing.active
        assert await ask("migrate_cancel") == {}
        assert await ask("migrate_cancel") == {}

    play(guest, script)


@pytest.mark.parametrize("flag", ["blk", "inc"])
def test_disks_are_wanted_in_one_way(guest: SyntheticGuest, flag: str) -> None:
    """Broken: a client would get another answer than from QEMU 7.2, which wants it said once."""

    async def script(_: Service, ask: Ask) -> None:
        block = {"capability": "block", "state": True}
        assert await ask("migrate-set-capabilities", capabilities=[block]) == {}
        refused = await ask("migrate", uri="exec:true", **{flag: True})
        assert refused == "Command options are incompatible with current migration capabilities"
        assert await ask("query-migrate") == {}

    play(guest, script)


async def over(ask: Ask) -> Any:
    """Wait until a migration is over, and return what is said of it."""
    while (answer := await ask("query-migrate"))["status"] not in ("completed", "failed"):
        await asyncio.sleep(0.01)
    return answer


@pytest.mark.parametrize("zero_blocks", [True, False])
def test_disks_move(tmp_path: Path, zero_blocks: bool) -> None:
    """Broken: who asks for disks would believe that they had come."""
    write_image(tmp_path / "image", 4 * MIB)
    with closing(SyntheticGuest.parse(f"1M,disk={tmp_path}/image")) as guest:

        async def script(_: Service, ask: Ask) -> None:
            wanted = {"capability": "zero-blocks", "state": zero_blocks}
            await ask("migrate-set-capabilities", capabilities=[wanted])
            assert await ask("migrate", uri=f"file:{tmp_path}/stream", blk=True) == {}
            answer = await over(ask)
            # As in QEMU, which has no figures of disks any more when they have gone.
            assert "disk" not in answer
            assert answer["status"] == "completed"

        play(guest, script)
    found = streams.read_file(tmp_path / "stream")
    blocks = [event for event in found if isinstance(event, DiskBlock)]
    assert [event.sector for event in blocks] == [0, 2048, 4096, 6144]
    assert any(event.data is None for event in blocks) is zero_blocks


def test_what_lies_above_a_raw_image_is_not_known(tmp_path: Path) -> None:
    """Broken: a part of a disk would be taken for what was changed on it."""
    write_image(tmp_path / "image", MIB)
    with closing(SyntheticGuest.parse(f"1M,disk={tmp_path}/image")) as guest:

        async def script(_: Service, ask: Ask) -> None:
            assert await ask("migrate", uri="exec:true", blk=True, inc=True) == {}
            answer = await over(ask)
            assert answer["status"] == "failed"
            assert "raw image without a backing image" in answer["error-desc"]

        play(guest, script)


def test_lists_and_version(guest: SyntheticGuest) -> None:
    """Broken: a client that asks what there is would be told something else than there is."""

    async def script(_: Service, ask: Ask) -> None:
        version = await ask("query-version")
        assert version["qemu"] == {"major": 7, "minor": 2, "micro": 0}
        assert version["package"].startswith("vmferry-")
        events = {event["name"] for event in await ask("query-events")}
        assert {"MIGRATION", "MIGRATION_PASS", "STOP", "RESUME", "SHUTDOWN"} <= events

    play(guest, script)
