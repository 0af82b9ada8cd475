"""Migrations in a row between two services, there and back: `--count 500`.

    python -m tests.system.chaos.endurance --count 500

Both services are the same processes all the time; the guest goes from one to the other. Sometimes
a migration is cancelled first, or has no destination. Memory, descriptors, processes and temporary
files are counted behind each migration: from the first tenth to the last one they do not grow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from .ends import End
from .processes import Family
from .qmp import NoAnswerError, ask
from .watch import Heart

LIMIT = 60.0
"""Seconds that a migration, or an answer, may take."""
GROWTH = {"memory": 6 << 20, "descriptors": 0, "processes": 0, "files": 0}
"""Limit for the growth of each figure; memory in bytes, of all processes."""
CANCEL_EVERY, FAIL_EVERY = 7, 11


class EnduranceError(Exception):
    """A migration did not do what it should; one line."""


@dataclass(frozen=True)
class Usage:
    """Resources of all processes of both services; `memory` in bytes, shared pages counted once."""

    memory: int
    descriptors: int
    processes: int
    files: int


class Service(End):
    """A `vmferry serve` that stays, whether the guest is here or there."""

    def __init__(self, side: str, folder: Path, family: Family) -> None:
        super().__init__(side, "serve", folder, family, 30)
        self.heart = Heart(folder / f"{side}.beat")

    def start(self, size: str) -> None:
        """Start it; with no size it waits to be told where a guest comes from."""
        options = [f"heartbeat={self.folder}/{self.side}.beat", "orphan=5"]
        guest = "synthetic:" + ",".join([size] * bool(size) + options)
        incoming = [] if size else ["--incoming", "defer"]
        self._start(["serve", "--guest", guest, "--qmp", f"unix:{self._qmp}", *incoming])

    def ask(self, name: str, **arguments: object) -> object:
        """Return the answer to a QMP command."""
        return ask(self._qmp, name, timeout=LIMIT, **arguments)

    def status(self) -> str:
        """Return what it says of its migration."""
        return str(ask(self._qmp, "query-migrate", timeout=LIMIT).get("status", ""))

    def runs(self) -> bool:
        """Return whether the guest has written here since the last call."""
        beat = self.heart.look()
        return beat is not None and beat.running


class Pair:
    """Two services, the guest at the first of `sides`."""

    def __init__(self, folder: Path, size: str) -> None:
        self._folder = folder
        (folder / "tmp").mkdir()
        self.family = Family(f"endurance.{os.getpid()}")
        self.sides = [Service(side, folder, self.family) for side in ("source", "destination")]
        self.sides[0].start(size)
        self.sides[1].start("")
        for side in self.sides:
            _until(lambda side=side: self._answers(side), "a service does not start")  # type: ignore[misc]
            on = [{"capability": "return-path", "state": True}]
            side.ask("migrate-set-capabilities", capabilities=on)
            side.ask("migrate-set-parameters", max_bandwidth=0)

    @staticmethod
    def _answers(side: Service) -> bool:
        with suppress(NoAnswerError):
            side.ask("query-status")
            return True
        return False

    def migrate(self, number: int) -> None:
        """Move the guest to the other service, after what goes wrong before."""
        here, there = self.sides
        if number % FAIL_EVERY == 0:
            here.ask("migrate", uri=f"unix:{self._folder}/nobody")
            _until(lambda: here.status() == "failed", "no failure without a destination")
        if number % CANCEL_EVERY == 0:
            self._cancel(here)
        address = f"unix:{self._folder}/link"
        there.ask("migrate-incoming", uri=address)
        here.ask("migrate", uri=address)
        for side in (here, there):
            _until(lambda side=side: self._completed(side), f"{number}: not completed")  # type: ignore[misc]
        _until(there.runs, f"migration {number}: the guest does not run where it went")
        self.sides.reverse()

    @staticmethod
    def _completed(side: Service) -> bool:
        status = side.status()
        if status in ("failed", "cancelled"):
            raise EnduranceError(f"a migration {status}: {side.said()}")
        return status == "completed"

    def _cancel(self, here: Service) -> None:
        here.ask("migrate-set-parameters", max_bandwidth=1 << 20)
        here.ask("migrate", uri="exec:cat > /dev/null")
        _until(lambda: here.status() == "active", "does not become active")
        here.ask("migrate_cancel")
        _until(lambda: here.status() == "cancelled", "is not cancelled")
        here.ask("migrate-set-parameters", max_bandwidth=0)

    def usage(self) -> Usage:
        """Count what is used, once no process of the last migration is there any more."""
        processes = self.family.alive()
        return Usage(
            memory=sum(_memory(process.pid) for process in processes),
            descriptors=sum(_descriptors(process.pid) for process in processes),
            processes=len(processes),
            files=sum(1 for _ in (self._folder / "tmp").rglob("*")),
        )

    def close(self) -> None:
        """End both services."""
        for side in self.sides:
            side.signal(signal.SIGTERM)
            side.close()
        for process in self.family.alive():
            process.kill(signal.SIGKILL)


def _memory(pid: int) -> int:
    """Return the proportional set size of a process: of shared memory, its part."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _descriptors(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise EnduranceError(otherwise)
        time.sleep(0.02)


def endure(
    count: int, size: str = "8M,dirty-rate=2M", say: Callable[[str], None] = lambda _: None
) -> list[Usage]:
    """Migrate so many times; returns what was used behind each. Raises EnduranceError."""
    folder = Path(tempfile.mkdtemp(prefix="endurance-"))
    pair = Pair(folder, size)
    used = []
    try:
        for number in range(1, count + 1):
            pair.migrate(number)
            used.append(pair.usage())
            if number % 25 == 0 or number in (1, count):
                say(f"{number:5} {used[-1]}")
    finally:
        pair.close()
        shutil.rmtree(folder)
    return used


def growth(used: list[Usage]) -> dict[str, float]:
    """Return by how much each figure grew: the median of the last tenth less that of the second."""
    tenth = max(len(used) // 10, 3)
    early, late = used[tenth : 2 * tenth], used[-tenth:]
    grown = {}
    for field in fields(Usage):
        first, last = ([getattr(usage, field.name) for usage in part] for part in (early, late))
        grown[field.name] = statistics.median(last) - statistics.median(first)
    return grown


def main() -> int:
    """Run it, and return 1 if something grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos.endurance")
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    started = time.monotonic()
    grown = growth(endure(options.count, say=lambda line: print(line, flush=True)))
    seconds = time.monotonic() - started
    print(f"{options.count} migrations in {seconds:.0f} s; grown by {grown}")
    too_much = [name for name, limit in GROWTH.items() if grown[name] > limit]
    print("flat" if not too_much else f"grew: {', '.join(too_much)}")
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
