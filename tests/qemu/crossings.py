"""Move a guest from QEMU to QEMU by `qemu:` at one end or at both, and check all that it says.

`python -m tests.qemu.crossings --runs 10` prints a line for each journey. The guest is that of the
tests of relays: it says a number each time that its files, or its timer, are what they should be.
Under TCG a QEMU 7.2 loses some of what a running Linux writes as it migrates, also without vmferry.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.qemu.running import Command
from tests.relay.network.guests import MIB, Guest, beats

WAYS = ("vmferry to stock", "stock to vmferry", "vmferry to vmferry")
"""Drivers of the two ends of a hop: vmferry by `qemu:`, or QMP as any user of QEMU."""
_RATE = 64 * MIB


@dataclass(frozen=True)
class Hop:
    """One migration: who drives its ends, and the QEMU at its destination."""

    way: str
    version: str
    options: tuple[str, ...] = ()
    """Options of `send`, and of what stands for it."""


@dataclass
class Journey:
    """Faults of a guest that moved, and the downtime of each hop in milliseconds."""

    faults: list[str] = field(default_factory=list)
    downtimes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    numbers: int = 0

    def __str__(self) -> str:
        verdict = "; ".join(self.faults) or "ok"
        times = ", ".join(map(str, self.downtimes))
        return f"{verdict}: {self.numbers} numbers, downtime {times} ms, {self.seconds:.1f} s"


class Traveller:
    """A guest and the QEMUs that it has been in."""

    def __init__(
        self, kind: str, version: str, folder: Path, held: ExitStack, machine: str, size: int
    ) -> None:
        self._kind = kind
        self._machine = machine
        self._size = size
        self._folder = folder
        self._held = held
        self.qemus: list[Guest] = []
        self._add(version)
        self.qemus[0].wait_for_beats(4)

    def _add(self, version: str, *options: str) -> Guest:
        number, folder = len(self.qemus), self._folder
        guest = Guest(
            self._kind,
            version,
            folder / f"q{number}",
            *("-qmp", f"unix:{folder}/{number}.qmp,server=on,wait=off", *options),
            machine=self._machine,
            size=self._size,
        )
        self._held.callback(guest.stop)
        self.qemus.append(guest)
        return guest

    def text(self, number: int) -> str:
        """Return what names the guest of a QEMU on a command line."""
        return f"qemu:{self._folder}/{number}.qmp"

    def said(self) -> bytes:
        """Return what the guest has said so far, wherever it was."""
        return b"".join(guest.said() for guest in self.qemus)

    def go(self, hop: Hop) -> int:
        """Make a hop, and return the downtime in milliseconds."""
        here, source = len(self.qemus) - 1, self.qemus[-1]
        there = here + 1
        uri = f"unix:{self._folder}/{there}.in"
        target = self._add(hop.version, "-incoming", "defer")
        receiver = None
        if hop.way.endswith("to vmferry"):
            log = self._folder / f"receive{there}"
            receiver = Command(log, "receive", uri, "--guest", self.text(there))
            self._held.callback(receiver.kill)
            receiver.wait_said("listening on")
        else:
            target.ask("migrate-incoming", uri=uri)
        if hop.way.startswith("vmferry"):
            log = self._folder / f"send{here}"
            sender = Command(log, "send", uri, "--guest", self.text(here), *hop.options)
            self._held.callback(sender.kill)
            assert sender.wait() == 0, sender.said()
        else:
            source.enable("return-path")
            source.ask("migrate-set-parameters", **{"max-bandwidth": 0})
            source.migrate(uri)
        if receiver is not None:
            assert receiver.wait() == 0, receiver.said()
        target.wait_for_beats(3)
        assert source.ask("query-status")["status"] == "postmigrate"
        downtime: int = source.ask("query-migrate")["downtime"]
        return downtime


def travel(
    kind: str,
    version: str,
    hops: list[Hop],
    folder: Path,
    *,
    machine: str,
    size: int,
) -> Journey:
    """Start a guest, move it, and return what became of it."""
    journey, begun = Journey(), time.monotonic()
    with ExitStack() as held:
        traveller = Traveller(kind, version, folder, held, machine, size)
        try:
            for hop in hops:
                journey.downtimes.append(traveller.go(hop))
            still = [len(guest.said()) for guest in traveller.qemus[:-1]]
            traveller.qemus[-1].wait_for_beats(3)
            if still != [len(guest.said()) for guest in traveller.qemus[:-1]]:
                journey.faults.append("the guest runs where it was, too")
        except AssertionError as error:
            journey.faults.append(f"{error}"[:600] or "an assertion")
        found = beats(traveller.said())
        journey.numbers = len(found)
        if -1 in found:
            journey.faults.append("a file has another checksum")
        elif found != list(range(1, len(found) + 1)):
            bad = next(at for at, number in enumerate(found, 1) if number != at)
            journey.faults.append(f"number {found[bad - 1]} in place of {bad}")
    journey.seconds = time.monotonic() - begun
    return journey


def main() -> int:
    """Make journeys, and return 1 if one of them went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.qemu.crossings", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="of each journey")
    parser.add_argument("--kind", choices=("boot", "linux"), default="linux")
    parser.add_argument("--size", type=int, default=512, help="MiB of memory")
    parser.add_argument("--machines", default="pc-i440fx-7.2,pc-q35-7.2")
    parser.add_argument("--versions", default="10:10", help="FROM:TO, with commas between them")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--round", action="store_true", help="one journey through all ways")
    parser.add_argument("--options", default="", help="options of send")
    options = parser.parse_args()
    extra = tuple(options.options.split())
    failed = False
    for machine in options.machines.split(","):
        for versions in options.versions.split(","):
            first, then = versions.split(":")
            ways = options.ways.split(",")
            journeys = [ways] if options.round else [[way] for way in ways]
            for chosen in journeys:
                hops = [Hop(way, then, extra) for way in chosen]
                name = f"{options.kind} {machine} {versions} {', '.join(chosen)}"
                for _ in range(options.runs):
                    with tempfile.TemporaryDirectory() as folder:
                        made = travel(
                            options.kind,
                            first,
                            hops,
                            Path(folder),
                            machine=machine,
                            size=options.size * MIB,
                        )
                    print(f"{name}: {made}", flush=True)
                    failed |= bool(made.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
