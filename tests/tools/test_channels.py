"""Captured multifd migrations: the main channel and the others together."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vmferry.protocol.wire import multifd
from vmferry.protocol.wire.multifd import Compression

from tests import streams
from tests.protocol.channels import Channel, Migration, migration

PAGE = 4096
EQUAL = "valid; RAM is equal"
KINDS = [Compression.NONE, Compression.ZLIB, Compression.ZSTD]


@dataclass(frozen=True)
class Files:
    """A migration in files: the main channel's, and options that name the others."""

    main: str
    channels: list[str]
    folder: Path

    def options(self, name: str = "--channel") -> list[str]:
        return [f"{name}={file}" for file in self.channels]


def written(vmferry: Any, made: Migration, name: str = "") -> Files:
    """Write the stream and its channels."""
    files = [vmferry.write(f"{name}ch{n}", data) for n, data in enumerate(made.channels)]
    return Files(vmferry.write(f"{name}main", made.main), files, vmferry.folder)


def ram_pairs(vmferry: Any, made: Migration) -> list[str]:
    """Return the options of `verify` for all RAM."""
    return [
        f"--ram={name}={vmferry.write(f'ram-{name}', image)}" for name, image in made.ram.items()
    ]


@pytest.mark.parametrize("at_flush", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_verify(kind: Compression, at_flush: bool, count: int, vmferry: Any) -> None:
    """Broken: a page that was sent again over another channel would be that of the round before."""
    made = migration(kind, at_flush=at_flush, count=count)
    files = written(vmferry, made)
    options = [*files.options()[::-1], *ram_pairs(vmferry, made)]
    result = vmferry.call("verify", files.main, *options)
    assert (result.exit_code, result.stdout.split("\n")[0]) == (0, f"{files.main}: {EQUAL}")


@pytest.mark.parametrize("at_flush", [True, False])
def test_convert_and_diff(at_flush: bool, vmferry: Any) -> None:
    """Broken: a stream of one channel would build other RAM than the captured ones, or take a page
    of the main channel for one of another block."""
    made = migration(Compression.ZSTD, at_flush=at_flush)
    files = written(vmferry, made)
    for container in ("plain", "gzip"):
        out = str(vmferry.folder / container)
        assert (
            vmferry.call("convert", files.main, out, "--to", container, *files.options()).exit_code
            == 0
        )
        result = vmferry.call("verify", out, *ram_pairs(vmferry, made))
        assert (result.exit_code, result.stdout.split("\n")[0]) == (0, f"{out}: {EQUAL}")
        result = vmferry.call("diff", out, files.main, *files.options("--other-channel"))
        assert result.stdout == "equal: RAM and devices\n"
        result = vmferry.call("diff", files.main, out, *files.options())
        assert result.stdout == "equal: RAM and devices\n"
        options = ("--against", files.main, *files.options("--other-channel"))
        assert vmferry.call("verify", out, *options).exit_code == 0
    plain = (vmferry.folder / "plain").read_bytes()
    assert gzip.decompress((vmferry.folder / "gzip").read_bytes()) == plain
    assert vmferry.call("verify", out, *files.options("--other-channel")).exit_code == 2


def test_extract(vmferry: Any) -> None:
    """Broken: zeros would be given out for pages that are in the channels' files; compressed ones,
    too."""
    made = migration()
    files = written(vmferry, made)
    for file, data in zip(files.channels, made.channels, strict=True):
        Path(file).write_bytes(gzip.compress(data))
    out = vmferry.folder / "out"
    ran = vmferry.run("extract", files.main, *files.options(), "-o", str(out))
    assert (ran.status, ran.err) == (0, "")
    assert out.read_bytes() == made.ram["pc.ram"]


def test_dump(vmferry: Any) -> None:
    """Broken: nobody would see what went over which channel, and in which round."""
    files = written(vmferry, migration(Compression.ZLIB))
    found = json.loads(vmferry.call("dump", "--json", files.main, *files.options()).stdout)
    assert [(one["channel"], one["file"], one["compression"]) for one in found["channels"]] == [
        (number, file, "zlib") for number, file in enumerate(files.channels)
    ]
    assert sum(one["plain"] for one in found["channels"]) == 3 * (48 + 4)
    assert sum(one["zero"] for one in found["channels"]) == 3 * 8
    assert [one["syncs"] for one in found["channels"]] == [5, 5]
    assert [one["size"] for one in found["channels"]] == [
        Path(file).stat().st_size for file in files.channels
    ]
    rounds = [(one["plain"], one["zero"]) for one in found["rounds"]]
    assert rounds == [(52, 16), (52, 16), (52, 16), (0, 2)]
    text = vmferry.call("dump", files.main, *files.options()).stdout
    assert "channel  packets  sync points  compression" in text
    lines = vmferry.call("dump", "--json", "--pages", files.main, *files.options()).stdout
    runs = [json.loads(line) for line in lines.splitlines()[:-1]]
    assert {run["channel"] for run in runs} == {0, 1, None}


def test_places_of_pages(vmferry: Any) -> None:
    """Broken: `dump --pages` would name places where no page is."""
    made = migration()
    files = written(vmferry, made)
    lines = vmferry.call("dump", "--json", "--pages", files.main, *files.options()).stdout
    checked = 0
    for run in [json.loads(line) for line in lines.splitlines()[:-1]]:
        if run["channel"] is None:
            continue
        data, at = made.channels[run["channel"]], run["offset"]
        if run["kind"] == "zero":
            assert int.from_bytes(data[at : at + 8], "big") == run["first"]
        elif run["block"] == "pc.rom" and run["first"] == 0:
            checked += data[at : at + PAGE] == made.ram["pc.rom"][:PAGE]
    assert checked == 1


def test_main_channel_alone(vmferry: Any) -> None:
    """Broken: nobody would learn where the pages are."""
    out = vmferry.folder / "out"
    files = written(vmferry, migration())
    ran = vmferry.run("extract", files.main, "-o", str(out))
    assert (ran.status, len(out.read_bytes())) == (1, 64 * PAGE)
    assert ran.error.startswith(f"{files.main}: pc.ram: 54 of 64 pages never arrived")
    assert ran.error.endswith("over other channels (multifd): give each by --channel FILE")
    # Without flush records nothing but the lack of content says so.
    files = written(vmferry, migration(at_flush=False))
    result = vmferry.call("verify", files.main)
    assert result.exit_code == 1
    assert "if this is the main channel of a multifd migration" in result.stdout


@pytest.mark.parametrize("command", ["dump", "verify", "extract", "convert"])
def test_a_channel_alone(command: str, vmferry: Any) -> None:
    """Broken: nobody would learn what the file is."""
    files, out = written(vmferry, migration()), str(vmferry.folder / "out")
    more = {"extract": ("-o", out), "convert": (out, "--to", "plain")}.get(command, ())
    ran = vmferry.run(command, files.channels[0], *more)
    assert ran.status == 1
    assert "a channel of a multifd migration" in ran.error
    assert "--channel" in ran.error


def _spoiled(what: str, made: Migration) -> tuple[list[bytes], int, int, str]:
    """Return channels in which something is wrong: which one, where, and the message about it."""
    one, two = made.channels
    hello, half = multifd.HELLO_SIZE, len(two) - 2000
    other = bytes(Channel(1, uuid=bytes(16)).data)
    return {
        "empty": ([one, b""], 1, 0, "not a multifd channel: it is empty"),
        "not one": ([one, made.main], 1, 0, "not a multifd channel: it does not begin as one"),
        "hello": ([one, two[:40]], 1, 40, "the channel ends within its greeting"),
        "twice": ([one, two, two], 2, hello, "channel 1 occurs twice: it is in "),
        "first missing": ([two], 0, hello, "channel 0 is missing: there are 1"),
        "uuid": ([one, other + two[hello:]], 1, hello, "another machine's channel than "),
        "cut": ([one, two[:half]], 1, half, "the channel ends within a packet"),
        "last missing": ([one], 0, len(one), "the source sent 36 packets, 19 are in 1 channels"),
        "sync missing": ([one, two[:-1344]], 1, len(two) - 1344, "before sync point 4 of"),
        "more": ([one, two + two[-1344:]], 1, len(two) + 1344, "a sync point behind sync point 4"),
    }[what]


SPOILED = [
    *("empty", "not one", "hello", "twice", "first missing", "uuid", "cut", "last missing"),
    *("sync missing", "more"),
]


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_wrong_with_channels(what: str, vmferry: Any) -> None:
    """Broken: RAM would be built of some channels, or of those of two migrations."""
    made = migration()
    channels, number, place, message = _spoiled(what, made)
    files = written(vmferry, Migration(made.main, tuple(channels), made.ram))
    out = vmferry.folder / "out"
    ran = vmferry.run("extract", files.main, *files.options(), "-o", str(out))
    assert (ran.status, ran.out) == (1, "")
    assert ran.error.startswith(f"{files.channels[number]}: offset {place:#x}")
    assert message in ran.error
    assert not out.exists()


def test_another_machine(vmferry: Any) -> None:
    """Broken: another guest's pages would be put into this one's RAM."""
    made = migration()
    main = made.main.replace(bytes(range(16)), bytes(range(1, 17)))
    files = written(vmferry, Migration(main, made.channels, made.ram))
    ran = vmferry.run("verify", files.main, *files.options())
    assert "another machine's channel than the main one: its UUID differs" in ran.error
    assert ran.error.startswith(f"{files.channels[0]}: ")


def test_channels_of_an_ordinary_stream(vmferry: Any) -> None:
    """Broken: pages of another migration would be put over those of a whole stream."""
    files = written(vmferry, migration())
    ran = vmferry.run("verify", vmferry.write("plain", streams.WHOLE), *files.options())
    assert ran.status == 1
    assert ran.error.startswith(files.channels[0])


def test_partial(vmferry: Any) -> None:
    """Broken: what arrived before a channel was cut would be lost."""
    made = migration()
    one, two = made.channels
    files = written(vmferry, Migration(made.main, (one, two[: len(two) // 2]), made.ram))
    out = vmferry.folder / "out"
    ran = vmferry.run("extract", files.main, *files.options(), "-o", str(out), "--partial")
    assert ran.status == 1
    assert any(out.read_bytes())
    # Every page had arrived once by then.
    assert ran.error.startswith(f"{files.channels[1]}: offset {len(two) // 2:#x}")
    assert ran.error.endswith("what arrived before this was kept")


@pytest.mark.parametrize("number", range(60))
def test_damage(number: int, vmferry: Any) -> None:
    """Broken: a damaged channel would be a traceback, a hang, or RAM that nobody sent."""
    chance = random.Random(number)
    made = migration(chance.choice(KINDS), at_flush=chance.random() < 0.5)
    channels = [bytearray(data) for data in made.channels]
    data = chance.choice(channels)
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    files = written(vmferry, Migration(made.main, tuple(map(bytes, channels)), made.ram))
    result = vmferry.call("verify", files.main, *files.options(), *ram_pairs(vmferry, made))
    assert result.exit_code in (0, 1)
    if result.exit_code:
        assert result.stderr.count("\n") == 1 or "differ" in result.stdout
