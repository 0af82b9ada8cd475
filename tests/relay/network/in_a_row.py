"""One guest moves to and fro through the same relays: `python -m tests.relay.network.in_a_row`.

There are two pairs of relays, one for each direction. The guest numbers what it says, so the ports
of all its machines hold every number once. What the relays have of memory and descriptors after a
while they have at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.relay.network.guests import Guest, beats
from tests.relay.network.relays import PORT, RelayProcess, Relays

LOOPBACK = "127.0.0.1"
SETTLE = 1.0
"""Seconds in which a relay lets go of what its last migration had."""
GROWTH = 32 << 20
"""Bytes by which the memory of a relay goes up and down: buffers and what the allocator keeps."""


@dataclass(frozen=True)
class Held:
    """Memory in bytes, and open descriptors, of one relay."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Held:
        """Return what a process has."""
        process = psutil.Process(pid)
        return cls(process.memory_info().rss, process.num_fds())

    def __str__(self) -> str:
        return f"{self.memory / (1 << 20):.1f} MiB, {self.descriptors} descriptors"


def move(count: int, version: str, folder: Path, *options: str) -> tuple[list[Held], list[Held]]:
    """Move a guest so often; return what the relays had after the first third, and at the end.

    Raises AssertionError if the guest lost or repeated something.
    """
    pairs: list[Relays] = []
    said, first = b"", []
    with ExitStack() as held:
        for number in range(2):
            where, port = folder / f"pair-{number}", PORT + number
            pair = Relays(([], []), where, *options, address=LOOPBACK, port=port)
            held.callback(pair.close)
            pairs.append(pair)
        relays = [relay for pair in pairs for relay in pair.both]
        guest = Guest("boot", version, folder / "guest-0")
        # The guest that runs now; each machine but the last ends as the next one has the guest.
        held.callback(lambda: guest.stop())  # noqa: PLW0108
        guest.enable("return-path")
        guest.wait_for_beats(2)
        for number in range(count):
            pair = pairs[number % 2]
            target = Guest("boot", version, folder / f"guest-{number + 1}", "-incoming", "defer")
            try:
                target.enable("return-path")
                target.ask("migrate-incoming", uri=pair.exit)
                guest.migrate(pair.entry)
                target.wait_for("completed")
                target.wait_for_beats(1)
            except BaseException:
                target.stop()
                raise
            said += guest.said()
            guest.stop()
            guest = target
            if number == count // 3:
                first = _look(relays)
        found = beats(said + guest.said())
        assert found == list(range(1, len(found) + 1)), "a number is missing, or there twice"
        return first, _look(relays)


def _look(relays: list[RelayProcess]) -> list[Held]:
    """Return what relays have between two migrations."""
    time.sleep(SETTLE)
    return [Held.of(relay.process.pid) for relay in relays]


def main() -> int:
    """Move a guest, and return 1 if the relays grow."""
    name = "python -m tests.relay.network.in_a_row"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--qemu", choices=("7.2", "10"), default="10")
    parser.add_argument("--compress", default="zstd")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmferry-row-") as folder:
        compress = ("--compress", options.compress)
        first, last = move(options.runs, options.qemu, Path(folder), *compress)
    grown = False
    for before, now in zip(first, last, strict=True):
        grew = now.memory > before.memory + GROWTH or now.descriptors > before.descriptors
        print(f"{before} -> {now}{': it grows' if grew else ''}")
        grown = grown or grew
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
