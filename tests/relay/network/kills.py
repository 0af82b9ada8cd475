"""Migrations through relays of which one process is killed: `python -m tests.relay.network.kills`.

One line a run; the same seed and number make the same run again, up to the speed of the machine.
The rules: never do two guests run; the one that is left runs by itself, unless it died with its
QEMU, or the far relay was killed while the end was under way (then the near one says what to do).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from qemu.qmp import QMPError

from tests.patience import PATIENCE
from tests.relay.network.cuts import Guests
from tests.relay.network.guests import Guest, Saved, wait_until
from tests.relay.network.plan import MIB, Plan
from tests.relay.network.relays import Relays
from tests.relay.network.run import Outcome, Run

VICTIMS = ("near", "far", "source", "destination", "guardian")
PHASES = ("idle", "connecting", "round 0", "later round", "switchover", "end", "answer", "done")
"""Phases of a migration in which a process is killed.

`idle`: before the source connects. `connecting`: as it does. `switchover`: the guest is paused.
`end`: all is sent, and the destination, which is stopped, has not answered. `answer`: at about the
time of the answer. `done`: the migration has ended, and the relays wait for another one.
"""
LOOPBACK = "127.0.0.1"
RECONNECT = 3.0
_ANSWER = 5.0
"""Seconds that a QEMU has for an answer; 7.2 may hang when channels of multifd break."""
_ALONE = 15.0
"""Seconds after which nobody runs the guest unless a user acts."""
_ASKED = (EOFError, OSError, QMPError, asyncio.TimeoutError)


@dataclass(frozen=True)
class Kill:
    """One run: who is killed, when, and what is migrated how."""

    number: int
    victim: str
    phase: str
    moment: float
    """Place in the phase, from 0 to 1."""
    versions: tuple[str, str]
    multifd: bool = False
    connections: int = 1

    def __str__(self) -> str:
        inside = "multifd" if self.multifd else "one channel"
        return (
            f"{self.victim} at {self.phase} {self.moment:.2f}, {' to '.join(self.versions)},"
            f" {inside}, {self.connections} connections"
        )

    @property
    def plan(self) -> Plan:
        """Return the migration as other runs know it."""
        # At the end the near relay has to have read the stream, also on a busy machine.
        limit = {"round 0": 12, "later round": 12, "end": 24}.get(self.phase, 0)
        return Plan(
            self.number,
            "boot",
            self.versions,
            self.multifd,
            self.connections,
            "zstd",
            *(0, limit * MIB, self.phase, False, 0.0, self.moment),
        )


def make_kill(seed: int, number: int, victims: tuple[str, ...], phases: tuple[str, ...]) -> Kill:
    """Return a run; victims and phases take turns, all else is drawn."""
    drawn = random.Random(f"{seed} {number}")
    victim = victims[number % len(victims)]
    phase = phases[number // len(victims) % len(phases)]
    versions = drawn.choice([("7.2", "7.2"), ("10", "10")])
    moment, multifd = drawn.random(), drawn.random() < 0.3
    return Kill(number, victim, phase, moment, versions, multifd, drawn.choice([1, 4]))


class KillRun(Run):
    """The machines of a run, from the start to the verdict."""

    def __init__(self, kill: Kill, saved: Saved, folder: Path) -> None:
        super().__init__(kill.plan, saved, folder)
        self._kill = kill
        self._guardians: list[psutil.Process] = []
        self.ended = ""
        """Outcome for the guest, in words."""

    def run(self) -> Outcome:
        """Run, and return how it went."""
        with ExitStack() as held:
            self._open(held)
            held.callback(self._end_all)
            for guest in (self._source, self._target):
                guest.qmp.settimeout(_ANSWER)
            begun = time.monotonic()
            try:
                self._strike()
                self._judge()
            except AssertionError as error:
                self._fault(f"{error}"[:400] or traceback.format_exc())
            self._outcome.seconds = time.monotonic() - begun
            self._outcome.told = [line for one in self._processes for line in one.told()]
        return self._outcome

    def _open_relays(self, held: ExitStack) -> None:
        with socket.create_server((LOOPBACK, 0)) as free:
            port = free.getsockname()[1]
        relays = Relays(
            ([], []),
            self._folder,
            *("--compress", "zstd", "--reconnect", str(RECONNECT)),
            near_options=("--connections", str(self._kill.connections)),
            address=LOOPBACK,
            port=port,
        )
        held.callback(relays.close)
        self._entry, self._exit, self._processes = relays.entry, relays.exit, relays.both

    # The kill.

    def _strike(self) -> None:
        kill = self._kill
        if kill.phase == "idle":
            self._slay()
            with suppress(*_ASKED):
                self._source.begin_migration(self._entry)
            return
        self._source.begin_migration(self._entry)
        if kill.phase == "connecting":
            time.sleep(kill.moment * 0.05)
        elif kill.phase == "round 0":
            self._to_round_0()
        elif kill.phase == "later round":
            self._to_later_round()
        elif kill.phase == "switchover":
            self._to_switchover()
        elif kill.phase == "end":
            self._to_unanswered_end()
        else:
            self._wait_state("pre-switchover")
            self._switch_over()
            if kill.phase == "done":
                self._wait_state("completed")
            time.sleep(kill.moment * 0.15)
        self._slay()
        if kill.phase == "end" and not self._target.ended:
            os.kill(self._target.pid, signal.SIGCONT)
        if "round" in kill.phase:
            self._go_on_if_it_can()

    def _to_unanswered_end(self) -> None:
        self._wait_state("pre-switchover")
        os.kill(self._target.pid, signal.SIGSTOP)
        self._switch_over()
        near, _ = self._processes
        wait_until(lambda: "all of the guest has passed" in near.said(), "the end does not leave")

    def _go_on_if_it_can(self) -> None:
        """Let a source that still migrates come to its end."""
        with suppress(*_ASKED):
            self._source.ask("migrate-set-parameters", **{"downtime-limit": 2000})

    def _slay(self) -> None:
        """Kill the victim."""
        near, far = self._processes
        if near.process.poll() is None:
            self._guardians = psutil.Process(near.process.pid).children()
        if self._kill.victim == "guardian":
            for process in self._guardians:
                process.kill()
            return
        pids = {"near": near.process.pid, "far": far.process.pid}
        pids |= {"source": self._source.pid, "destination": self._target.pid}
        os.kill(pids[self._kill.victim], signal.SIGKILL)

    def _end_all(self) -> None:
        """Kill the QEMUs, which may not answer, and guardians whose relay is dead."""
        for guest in (self._source, self._target):
            guest.kill()
        for process in self._guardians:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    # The verdict.

    def _judge(self) -> None:
        lone = self._wait_for_one()
        if lone is None:
            self._nobody_runs()
        else:
            lone.wait_for_beats(3)
            self.ended = "at the source" if lone is self._source else "at the destination"
        if self._two_run():
            self._fault("two guests run")
        if not (self._kill.victim == "destination" and self._kill.phase == "answer"):
            # What a destination did before it was killed is lost with it.
            self._check_numbers(self._said())

    def _runs(self, guest: Guest) -> bool:
        with suppress(*_ASKED):
            if not guest.ended:
                return bool(guest.ask("query-status")["running"])
        return False

    def _two_run(self) -> bool:
        return self._runs(self._source) and self._runs(self._target)

    def _wait_for_one(self) -> Guest | None:
        """Return the QEMU that runs the guest in the end; None if none does for long."""
        deadline, since, last = time.monotonic() + PATIENCE, time.monotonic(), -1
        while time.monotonic() < deadline:
            self._continue_source()
            running = [one for one in (self._source, self._target) if self._runs(one)]
            if len(running) == 2:
                assert not self._two_run(), "two guests run"
            if len(running) != last:
                last, since = len(running), time.monotonic()
            waited = time.monotonic() - since
            if last == 1 and waited > 2 and self._is_over(running[0]):
                return running[0]
            if last == 0 and waited > _ALONE:
                return None
            time.sleep(0.02)
        raise AssertionError(f"it does not end: the source has {self._state()}")

    def _continue_source(self) -> None:
        """Let the source switch over if it waits for that."""
        with suppress(*_ASKED):
            if not self._source.ended and self._state() == "pre-switchover":
                self._switch_over()

    def _is_over(self, lone: Guest) -> bool:
        """Return whether the migration has ended, so that `lone` stays the one that runs."""
        if lone is self._target or self._source.ended:
            return True
        return self._state() in ("failed", "completed", "cancelled", "none")

    def _nobody_runs(self) -> None:
        kill = self._kill
        if kill.victim == "source":
            assert kill.phase not in ("end", "done"), "the guest is lost, though all of it had left"
            # Before a source has connected, its destination waits for another one.
            waits = kill.phase in ("idle", "connecting")
            wait_until(lambda: waits or self._target.ended, "the destination waits for more")
            self.ended = "died with its QEMU"
        elif kill.victim == "destination" and kill.phase in ("answer", "done"):
            assert self._state() == "completed", "the source keeps a guest that nobody has"
            self.ended = "died with its QEMU"
        else:
            told = self._processes[0].told()
            assert any("look there" in line for line in told), "nobody runs, and nobody says so"
            assert kill.victim == "far", "nobody runs"
            assert kill.phase in ("switchover", "end", "answer"), "nobody runs"
            self._act_as_user()
            self.ended = "at the source, by its user"

    def _act_as_user(self) -> None:
        """Do what the near relay says: the destination does not run."""
        self._target.kill()
        self._processes[0].process.terminate()
        wait_until(lambda: self._runs(self._source), "the source does not run on")
        self._source.wait_for_beats(3)


def run_kill(kill: Kill, guests: Guests) -> tuple[Outcome, str]:
    """Run, whatever happens; return also what became of the guest."""
    saved = guests.get("boot", kill.versions[0])
    with tempfile.TemporaryDirectory(prefix="vmferry-kill-") as folder:
        try:
            run = KillRun(kill, saved, Path(folder))
            return run.run(), run.ended
        except Exception:
            return Outcome([traceback.format_exc()]), ""


def main() -> int:
    """Run, and return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.relay.network.kills")
    parser.add_argument("--runs", type=int, default=len(VICTIMS) * len(PHASES))
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--victim", choices=VICTIMS, action="append")
    parser.add_argument("--phase", choices=PHASES, action="append")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    choice = tuple(options.victim or VICTIMS), tuple(options.phase or PHASES)
    numbers = range(options.first, options.first + options.runs)
    kills = [make_kill(options.seed, number, *choice) for number in numbers]
    failed, ends = 0, Counter[tuple[str, str, str]]()
    with (
        tempfile.TemporaryDirectory(prefix="vmferry-saved-") as folder,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        guests = Guests(Path(folder))
        running = {pool.submit(run_kill, kill, guests): kill for kill in kills}
        for done in as_completed(running):
            kill, (outcome, ended) = running[done], done.result()
            failed += bool(outcome.faults)
            ends[kill.victim, kill.phase, "FAILED" if outcome.faults else ended] += 1
            verdict = "; ".join(outcome.faults) or ended
            print(f"{kill.number}: {kill}: {verdict}, {outcome.seconds:.1f} s", flush=True)
            if outcome.faults:
                print(*(f"    {line}" for line in outcome.told), sep="\n", flush=True)
    for (victim, phase, ended), count in sorted(ends.items()):
        print(f"{victim:12} {phase:12} {count:4} {ended}")
    print(f"{len(kills)} runs, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
