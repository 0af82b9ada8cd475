"""Measure how fast QEMUs migrate through relays: `python -m tests.relay.network.speed`.

The runs of both take turns, and the table has the medians. Each page of the guest is half random
and half zero, so memory compresses 2:1; a few pages change all the time. Needs root, iproute2 and
QEMU, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from vmferry.tools.measure.bench.cases import NO_LIMIT, Case, Variant
from vmferry.tools.measure.bench.firmware import PAGE_SIZE, firmware
from vmferry.tools.measure.bench.memory import Memory
from vmferry.tools.measure.bench.qemu import Qemu

from tests.qemu.machine import qemu_command
from tests.relay.network.relays import Relays
from tests.relay.network.wire import FAR, Wire
from tests.system import link

MIB = 1 << 20
GIB = 1 << 30
LOOPBACK = "127.0.0.1"
PORT = 4444
CHANNELS = 4
"""Channels of QEMU's own multifd, and connections of the link, where the delay is long."""


@dataclass(frozen=True)
class Setting:
    """A link and a guest, and how both ways use them.

    `rate`: bytes a second, 0 for none; `delay`: seconds of each direction. `target`: the least that
    the throughput through relays should be, by that of QEMU alone.
    """

    name: str
    rate: int
    delay: float
    size: int
    compress: str
    target: float
    multifd: bool = False
    connections: int = 1
    writes: int = MIB
    hot: int = 8 * MIB

    def case(self) -> Case:
        """Return the guest as the benchmark knows it."""
        return Case(self.size, "random", self.writes, "warm", Variant("plain"), self.hot)


SETTINGS = (
    Setting("16 MiB/s, zstd", 16 * MIB, 0, 256 * MIB, "zstd", 1 / 0.65, hot=2 * MIB),
    Setting("50 MiB/s, zstd", 50 * MIB, 0, 512 * MIB, "zstd", 1 / 0.65),
    Setting("500 MiB/s, adaptive", 500 * MIB, 0, GIB, "adaptive", 0.95),
    Setting("loopback, none", 0, 0, GIB, "none", 0.35),
    Setting(
        "200 ms round trip, 4 connections",
        *(50 * MIB, 0.1, 512 * MIB, "none", 1.0),
        multifd=True,
        connections=CHANNELS,
    ),
)


@dataclass(frozen=True)
class Measured:
    """One run: seconds in all and of downtime; CPU seconds of each relay for a GiB that passed."""

    seconds: float
    downtime: float
    near: float = 0.0
    far: float = 0.0


@dataclass(frozen=True)
class Hosts:
    """Two hosts: what to put before their commands, and the address of the far one."""

    near: list[str]
    far: list[str]
    address: str


@contextmanager
def hosts(setting: Setting) -> Iterator[Hosts]:
    """Have two hosts with the link of a setting between them."""
    if not setting.rate:
        yield Hosts([], [], LOOPBACK)
    elif setting.delay:
        with closing(link.Link(link.Quality(setting.rate, setting.delay))) as far_away:
            yield Hosts(far_away.near, far_away.far, link.FAR)
    else:
        with closing(Wire(setting.rate)) as wire:
            yield Hosts(wire.near, wire.far, FAR)


def measure(setting: Setting, version: str, *, relayed: bool) -> Measured:
    """Run one migration, and check that the memory arrived."""
    case = setting.case()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="vmferry-speed-")))
        ends = held.enter_context(hosts(setting))
        memory = held.enter_context(closing(Memory.create(case)))
        _halve(memory)
        image = folder / "firmware"
        image.write_bytes(firmware(case.hot, setting.writes))
        source, target = (
            held.enter_context(closing(made))
            for made in (
                _qemu(ends.near, version, memory, image, source=True),
                _qemu(ends.far, version, memory, image, source=False),
            )
        )
        uri = f"tcp:{ends.address}:{PORT}"
        relays = None
        if relayed:
            near_options = ("--connections", str(setting.connections))
            compress = ("--once", "--compress", setting.compress)
            both = (ends.near, ends.far)
            relays = Relays(
                both, folder, *compress, near_options=near_options, address=ends.address
            )
            held.callback(relays.close)
        source.wait_running()
        capabilities = {"return-path"}
        parameters = {"max-bandwidth": NO_LIMIT}
        if setting.multifd and not relayed:
            capabilities.add("multifd")
            parameters["multifd-channels"] = CHANNELS
        for end in (source, target):
            end.prepare(capabilities, parameters)
        target.ask("migrate-incoming", uri=relays.exit if relays else uri)
        return _migrate(source, target, relays, relays.entry if relays else uri)


def _halve(memory: Memory) -> None:
    """Make half of each page zero."""
    source, _ = memory.ends()
    source.reshape(-1, PAGE_SIZE)[:, PAGE_SIZE // 2 :] = 0


def _qemu(host: list[str], version: str, memory: Memory, image: Path, *, source: bool) -> Qemu:
    program, environment = qemu_command(version)
    variables = [f"{name}={value}" for name, value in environment.items()]
    command = " ".join([*host, "env", *variables, *program])
    options = () if source else ("-S", "-incoming", "defer")
    shared = memory.source if source else memory.destination
    return Qemu(command, shared, memory.size, True, str(image), *options)


def _migrate(source: Qemu, target: Qemu, relays: Relays | None, uri: str) -> Measured:
    spent = _spent(relays)
    begun = time.monotonic()
    source.ask("migrate", uri=uri)
    figures = source.wait_migrated()
    seconds = time.monotonic() - begun
    target.wait_migrated()
    if relays is None:
        return Measured(seconds, figures["downtime"] / 1000)
    gib = figures["ram"]["transferred"] / GIB
    near, far = ((now - before) / gib for now, before in zip(_spent(relays), spent, strict=True))
    return Measured(seconds, figures["downtime"] / 1000, near, far)


def _spent(relays: Relays | None) -> list[float]:
    """Return the CPU seconds of each relay so far; one that has ended tells nothing any more."""
    if relays is None:
        return []
    times = [psutil.Process(one.process.pid).cpu_times() for one in relays.both]
    return [its.user + its.system for its in times]


def report(setting: Setting, version: str, count: int) -> bool:
    """Measure a setting, print its line, and return whether it is as fast as it should be."""
    alone, relayed = [], []
    for _ in range(count):
        alone.append(measure(setting, version, relayed=False))
        relayed.append(measure(setting, version, relayed=True))
    plain, ours = _median(alone), _median(relayed)
    factor = plain.seconds / ours.seconds
    print(
        f"{setting.name:34} {version:>4} {plain.seconds:8.2f} {ours.seconds:8.2f} {factor:7.2f}"
        f" {setting.target:7.2f} {plain.downtime:8.3f} {ours.downtime:8.3f}"
        f" {ours.near:6.2f} {ours.far:6.2f}",
        flush=True,
    )
    return factor >= setting.target


def _median(found: list[Measured]) -> Measured:
    names = ("seconds", "downtime", "near", "far")
    return Measured(*(statistics.median(getattr(one, name) for one in found) for name in names))


def main() -> int:
    """Measure, and return 1 if something is slower than it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.relay.network.speed", description=__doc__
    )
    parser.add_argument("--runs", type=int, default=3, help="of each; the table has the medians")
    parser.add_argument("--qemu", choices=("7.2", "10"), default="10")
    parser.add_argument("--only", default="", metavar="WORDS", help="settings of this name")
    options = parser.parse_args()
    print(f"{'':34} {'QEMU':>4} {'plain s':>8} {'relay s':>8} {'faster':>7} {'target':>7}", end="")
    print(f" {'downtime':>8} {'relayed':>8} {'near':>6} {'far':>6}  (CPU s/GiB)")
    chosen = [one for one in SETTINGS if options.only in one.name]
    fast = [report(one, options.qemu, options.runs) for one in chosen]
    return 0 if all(fast) else 1


if __name__ == "__main__":
    sys.exit(main())
