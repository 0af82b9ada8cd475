"""Test that each end of a pair of relays gets what the other one sends."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from vmferry.protocol.formats import link as records
from vmferry.protocol.wire.link import NONCE_SIZE, SESSION_SIZE, Purpose
from vmferry.relay.parameters import WINDOW

from tests.relay.pair import Pair
from tests.relay.proxy import Proxy

MIB = 1 << 20
OPTIONS = {
    "plain": {},
    "zstd": {"compress": "zstd"},
    "adaptive": {"compress": "adaptive"},
    "connections": {"near": {"connections": 4}},
    "zstd, connections": {"compress": "zstd:3", "near": {"connections": 3}},
    "secret": {"secret": b"0123456789abcdef"},
}
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def some_bytes(seed: int, size: int) -> bytes:
    """Return bytes of which half compress well."""
    rng = random.Random(seed)
    return b"".join(
        rng.randbytes(2048) + bytes([rng.randrange(256)]) * 2048 for _ in range(size >> 12)
    )


def run(test: Callable[[Pair], Awaitable[None]], pair: Callable[[], Pair]) -> None:
    """Run a test with a pair of relays, which end after it."""

    async def whole() -> None:
        made = pair()
        await made.start()
        try:
            await asyncio.wait_for(test(made), 120)
        finally:
            await made.stop()

    asyncio.run(whole())


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write all of `data` and end the direction."""
    for start in range(0, len(data), MIB):
        writer.write(data[start : start + MIB])
        await writer.drain()
    writer.write_eof()


async def is_broken(reader: asyncio.StreamReader) -> bool:
    """Return whether a connection ends without a byte; Unix sockets do not show that it broke."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def said(pair: Pair, words: str, count: int = 1) -> None:
    """Wait until so many lines of the relays hold these words."""
    while sum(words in line for line in pair.lines) < count:
        await asyncio.sleep(0.01)


async def exchange(pair: Pair, there: bytes, back: bytes) -> None:
    """Pass `there` to the destination and `back` to the source, at the same time."""
    reader, writer = await pair.connect()
    far_reader, far_writer = await pair.accept()
    found = await asyncio.gather(
        write(writer, there), write(far_writer, back), far_reader.read(), reader.read()
    )
    assert found[2] == there
    assert found[3] == back
    for one in (writer, far_writer):
        one.close()


@EACH
def test_both_directions_arrive(tmp_path: Path, options: dict[str, Any]) -> None:
    """Broken: law 8; the relay would add, lose or reorder bytes."""

    async def test(pair: Pair) -> None:
        await exchange(pair, some_bytes(1, 20 * MIB), some_bytes(2, 3 * MIB))

    run(test, lambda: Pair(tmp_path, **options))


@EACH
def test_a_cut_loses_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    """Broken: law 8; what was under way when the link broke would be lost, or arrive twice."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            proxy.break_after(MIB, times=3)
            await exchange(pair, some_bytes(3, 24 * MIB), some_bytes(4, 2 * MIB))
            assert proxy.breaks == 3

    run(test, lambda: Pair(tmp_path, link=f"unix:{tmp_path}/proxy.sock", **options))


def test_damage_on_the_link_is_a_cut(tmp_path: Path) -> None:
    """Broken: a byte that changed on the link would reach the guest, or end the migration."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            proxy.damage_at(2 * MIB + 12345)
            await exchange(pair, some_bytes(5, 8 * MIB), some_bytes(6, MIB))
        assert any("the link is cut" in line for line in pair.lines)

    run(test, lambda: Pair(tmp_path, link=f"unix:{tmp_path}/proxy.sock"))


def test_connections_are_kept_apart(tmp_path: Path) -> None:
    """Broken: channels of multifd would be mixed, or one that stands still would hold up others."""

    async def test(pair: Pair) -> None:
        still, still_writer = await pair.connect()
        far_still, far_still_writer = await pair.accept()
        stuck = asyncio.create_task(write(still_writer, bytes(2 * WINDOW)))
        for number in range(5):
            await exchange(pair, some_bytes(number, 2 * MIB), some_bytes(-number, MIB))
        assert not stuck.done()
        assert len(await far_still.read()) == 2 * WINDOW
        await stuck
        for writer in (still_writer, far_still_writer):
            writer.close()
        del still

    run(test, lambda: Pair(tmp_path))


def test_a_link_that_stays_cut_fails_both_ends(tmp_path: Path) -> None:
    """Broken: the source would wait for ever, or believe that its destination has the guest."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            reader, writer = await pair.connect()
            far_reader, far_writer = await pair.accept()
            writer.write(b"begin")
            assert await far_reader.readexactly(5) == b"begin"
            await proxy.close()
            assert await is_broken(reader)
            assert await is_broken(far_reader)
            for one in (writer, far_writer):
                one.close()
        await said(pair, "the link was cut for", 2)

    run(test, lambda: Pair(tmp_path, link=f"unix:{tmp_path}/proxy.sock", reconnect=0.5))


def test_a_destination_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Broken: the source would wait, and nobody would know for what."""

    async def test(pair: Pair) -> None:
        (tmp_path / "destination.sock").unlink()
        reader, writer = await pair.connect()
        assert await is_broken(reader)
        writer.close()
        await said(pair, "cannot connect to the destination")
        pair.listen()
        await exchange(pair, b"again", b"yes")

    run(test, lambda: Pair(tmp_path))


def test_one_migration_after_another(tmp_path: Path) -> None:
    """Broken: a relay would have to be started again for each migration."""

    async def test(pair: Pair) -> None:
        for number in range(5):
            await exchange(pair, some_bytes(number, MIB), b"done")

    run(test, lambda: Pair(tmp_path))


def test_a_source_that_breaks_is_broken_at_the_destination(tmp_path: Path) -> None:
    """Broken: a destination would take a source that died for one that is done."""

    async def test(pair: Pair) -> None:
        _, writer = await pair.connect()
        far_reader, far_writer = await pair.accept()
        writer.write(b"half")
        assert await far_reader.readexactly(4) == b"half"
        far_writer.transport.abort()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await write(writer, bytes(4 * WINDOW))
        writer.close()

    run(test, lambda: Pair(tmp_path))


def test_the_capture_of_a_link_is_a_zstd_file(tmp_path: Path) -> None:
    """Broken: `zstd -dc` of a capture would not give the stream."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            data = some_bytes(7, 5 * MIB)
            await exchange(pair, data, b"")
            captured = bytes(proxy.forward)
        with zstandard.ZstdDecompressor().stream_reader(captured, read_across_frames=True) as found:
            assert found.read() == data

    run(test, lambda: Pair(tmp_path, compress="zstd", link=f"unix:{tmp_path}/proxy.sock"))


# Who may connect.


@pytest.mark.parametrize("secret", [b"", b"0123456789abcdef"])
def test_a_near_relay_that_was_killed_may_be_started_again(tmp_path: Path, secret: bytes) -> None:
    """Broken: after a crash beside the source nothing could pass until --reconnect is over; or,
    without a secret, a stranger could end a migration whose link is cut."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            _, writer = await pair.connect()
            far_reader, far_writer = await pair.accept()
            await proxy.close()
            await said(pair, "the link is cut", 2)
            killed = pair.tasks.pop()
            killed.cancel()
            await asyncio.gather(killed, return_exceptions=True)
            again = Pair(tmp_path, secret=secret)
            again.listener = pair.listener
            await again.start_near()
            if secret:
                await exchange(again, b"again", b"yes")
                assert await is_broken(far_reader)
            else:
                reader, second = await again.connect()
                assert await is_broken(reader)
                await said(again, "serves another migration")
                second.close()
            await again.stop()
            for one in (writer, far_writer):
                one.close()

    run(test, lambda: Pair(tmp_path, link=f"unix:{tmp_path}/proxy.sock", secret=secret))


def test_another_secret_is_refused(tmp_path: Path) -> None:
    """Broken: whoever reaches the port could move a guest into the destination."""

    async def test(pair: Pair) -> None:
        reader, writer = await pair.connect()
        assert await is_broken(reader)
        writer.close()
        await said(pair, "does not know the secret")

    near, far = {"secret": b"a" * 16}, {"secret": b"b" * 16}
    run(test, lambda: Pair(tmp_path, near=near, far=far))


@pytest.mark.parametrize(
    "kind", ["silent", "garbage", "half", "half-closed", "other session", "settle", "replay"]
)
def test_strangers_disturb_nothing(tmp_path: Path, kind: str) -> None:
    """Broken: a stranger on the port could end, join or hold up a migration."""

    async def test(pair: Pair) -> None:
        async with Proxy(f"unix:{tmp_path}/proxy.sock", pair.far_uri) as proxy:
            reader, writer = await pair.connect()
            far_reader, far_writer = await pair.accept()
            for _ in range(20):
                await _stranger(tmp_path / "link.sock", kind, bytes(proxy.forward))
            data = some_bytes(8, 4 * MIB)
            found = await asyncio.gather(write(writer, data), far_reader.read())
            assert found[1] == data
            far_writer.write_eof()
            assert await reader.read() == b""
            for one in (writer, far_writer):
                one.close()

    link = f"unix:{tmp_path}/proxy.sock"
    run(test, lambda: Pair(tmp_path, link=link, secret=b"0123456789abcdef"))


def test_many_strangers_keep_nobody_out(tmp_path: Path) -> None:
    """Broken: whoever reaches the port could keep the near relay from ever being greeted."""

    async def test(pair: Pair) -> None:
        for _ in range(200):
            await _stranger(tmp_path / "link.sock", "silent", b"")
        await exchange(pair, some_bytes(9, MIB), b"yes")

    run(test, lambda: Pair(tmp_path, secret=b"0123456789abcdef"))


async def _stranger(path: Path, kind: str, captured: bytes) -> None:
    """Connect to the far relay as somebody else; check that it gives nothing away."""
    if kind == "silent":
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        _SILENT.append(sock)
        return
    reader, writer = await asyncio.open_unix_connection(str(path))
    # The session that passes, as whoever reads the link knows it.
    seen = records.read_record(captured[records.HEAD_SIZE :][: records.content_size(captured[:8])])
    assert isinstance(seen, records.Hello)
    other = seen._replace(session=bytes(SESSION_SIZE), nonce=bytes(NONCE_SIZE))
    no_proof = records.build_record(records.Proof(bytes(32)))
    writer.write(
        {
            "garbage": random.Random(1).randbytes(1000),
            "half": captured[:20],
            "half-closed": captured[:20],
            "other session": records.build_record(other) + no_proof,
            "settle": records.build_record(seen._replace(purpose=Purpose.SETTLE)) + no_proof,
            "replay": captured,
        }[kind]
    )
    if kind == "half":
        # It stays open, and says no more.
        sock = writer.get_extra_info("socket")
        await writer.drain()
        _SILENT.append(socket.socket(fileno=os.dup(sock.fileno())))
        writer.close()
        return
    if kind == "half-closed":
        writer.write_eof()
    try:
        answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    assert len(answer) < 200
    writer.close()


_SILENT: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_silent() -> Any:
    yield
    while _SILENT:
        _SILENT.pop().close()
