"""One run of a plan, and what is wrong with how it went.

The rules: the guest runs at exactly one end, and every number that it says is there once, in order.
Its files, or the memory that it does not write, are what they were. A source whose relays gave up
runs on, its destination has ended, and each relay says why in one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.relay.network.guests import Guest, Saved, beats, wait_until
from tests.relay.network.plan import CHANNELS, Plan
from tests.relay.network.relays import RelayProcess, Relays
from tests.relay.network.wire import Wire

NO_LIMIT = 1 << 40
"""Limits for QEMU, whose own defaults would be limits."""
_SLOW, _QUICK = 1, 2000
"""Limits of the downtime in milliseconds: so that rounds go on, and so that they end."""


@dataclass
class Outcome:
    """Outcome of a run: what is wrong, and figures."""

    faults: list[str] = field(default_factory=list)
    missed: bool = False
    """True if the migration had ended before the moment of the cut."""
    seconds: float = 0.0
    downtime: int = 0
    """Milliseconds, as the source says."""
    cuts: int = 0
    """Cuts that the near relay told of."""
    told: list[str] = field(default_factory=list)
    """Lines that the relays printed."""

    def __str__(self) -> str:
        verdict = "; ".join(self.faults) if self.faults else "ok"
        missed = ", ended before the cut" if self.missed else ""
        return (
            f"{verdict}{missed}, {self.seconds:.1f} s, downtime {self.downtime} ms,"
            f" {self.cuts} cuts seen"
        )


class Run:
    """The machines of a plan, from the start to the verdict.

    If not `relayed`, there are no relays and no cut: what goes wrong then is QEMU's own.
    """

    def __init__(self, plan: Plan, saved: Saved, folder: Path, *, relayed: bool = True) -> None:
        self._plan = plan
        self._relayed = relayed
        self._saved = saved
        self._folder = folder
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Run the plan, and return how it went."""
        with ExitStack() as held:
            self._open(held)
            begun = time.monotonic()
            self._source.begin_migration(self._entry)
            try:
                self._cut()
                self._go_on()
                if self._gives_up:
                    self._judge_failure()
                else:
                    self._judge_success()
            except AssertionError as error:
                self._fault(f"{error}"[:400] or "an assertion")
            self._outcome.seconds = time.monotonic() - begun
            self._outcome.told = [line for one in self._processes for line in one.told()]
            for near in self._processes[:1]:
                self._outcome.cuts = near.said().count("the link is cut:")
        return self._outcome

    def _open(self, held: ExitStack) -> None:
        """Start everything, up to a source that runs."""
        plan, folder = self._plan, self._folder
        self._entry = self._exit = f"unix:{folder}/direct.sock"
        self._processes: tuple[RelayProcess, ...] = ()
        if self._relayed:
            self._open_relays(held)
        kind, (old, new) = plan.kind, plan.versions
        self._target = Guest(kind, new, folder / "target", "-incoming", "defer")
        held.callback(self._target.stop)
        restore = f"exec:cat {self._saved.stream}"
        self._source = Guest(kind, old, folder / "source", "-incoming", restore)
        held.callback(self._source.stop)
        self._source.wait_for("completed")
        self._source.ask("cont")
        self._source.wait_for_beats(2)
        self._prepare()

    def _open_relays(self, held: ExitStack) -> None:
        plan = self._plan
        self._wire = held.enter_context(closing(Wire(plan.rate)))
        relays = Relays(
            (self._wire.near, self._wire.far),
            self._folder,
            *("--once", "--compress", plan.compress, "--reconnect", str(plan.reconnect)),
            near_options=("--connections", str(plan.connections)),
        )
        held.callback(relays.close)
        self._entry, self._exit, self._processes = relays.entry, relays.exit, relays.both

    def _said(self) -> bytes:
        """Return what the guest has said so far, wherever it was."""
        return self._saved.said + self._source.said() + self._target.said()

    def _prepare(self) -> None:
        plan = self._plan
        capabilities = ["return-path", "pause-before-switchover"]
        if plan.multifd:
            capabilities.append("multifd")
        for end in (self._source, self._target):
            end.enable(*capabilities)
            limits: dict[str, Any] = {
                "max-bandwidth": plan.bandwidth or NO_LIMIT,
                "downtime-limit": _SLOW if "round" in plan.phase else _QUICK,
            }
            if plan.multifd:
                limits["multifd-channels"] = CHANNELS
            end.ask("migrate-set-parameters", **limits)
        self._target.ask("migrate-incoming", uri=self._exit)

    # The cut.

    def _cut(self) -> None:
        """Cut the link at its moment, and mend it after its time."""
        plan = self._plan
        by_phase: dict[str, Callable[[], None]] = {
            "round 0": self._to_round_0,
            "later round": self._to_later_round,
            "switchover": self._to_switchover,
            "end": self._to_end,
            "return path": self._to_any,
        }
        by_phase[plan.phase]()
        in_round = "round" in plan.phase
        if in_round:
            # A guest that writes little may be ready to be switched over at any time.
            self._outcome.missed = self._state() not in ("setup", "active")
        if not self._relayed:
            return
        before = len(beats(self._said()))
        if plan.reset:
            self._wire.reset()
        self._wire.cut(*(("far",) if plan.phase == "return path" else ()))
        time.sleep(plan.seconds)
        if in_round and not self._outcome.missed and len(beats(self._said())) == before:
            self._fault("the guest stood still while the link was cut")
        self._wire.mend()

    def _status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._source.ask("query-migrate")
        return answer

    def _state(self) -> str:
        return str(self._status().get("status"))

    def _wait_state(self, *wanted: str) -> None:
        wait_until(lambda: self._state() in (*wanted, "failed"), f"never {wanted}", 0.005)
        assert self._state() in wanted, f"the source has {self._status()}"

    def _to_round_0(self) -> None:
        def reached() -> bool:
            status = self._status()
            ram = status.get("ram")
            if ram is None:
                return False
            left = ram["remaining"] / ram["total"]
            over = ram["dirty-sync-count"] > 1 or status["status"] == "pre-switchover"
            return over or bool(left and left <= 1 - 0.9 * self._plan.moment)

        wait_until(reached, "no round 0", 0.005)

    def _to_later_round(self) -> None:
        def reached() -> bool:
            rounds: int = self._status().get("ram", {}).get("dirty-sync-count", 0)
            return rounds >= 4

        wait_until(reached, "no later round", 0.005)
        time.sleep(self._plan.moment * 0.5)

    def _to_switchover(self) -> None:
        self._wait_state("pre-switchover")
        if self._plan.moment > 0.3:
            self._switch_over()
            time.sleep((self._plan.moment - 0.3) * 0.1)

    def _to_end(self) -> None:
        self._wait_state("pre-switchover")
        self._switch_over()

        def runs_there() -> bool:
            return bool(self._target.ask("query-status")["running"])

        wait_until(runs_there, "the guest does not arrive", 0.001)

    def _to_any(self) -> None:
        if self._plan.moment < 0.5:
            self._to_round_0()
        else:
            self._to_switchover()

    def _switch_over(self) -> None:
        self._source.ask("migrate-continue", state="pre-switchover")

    @property
    def _gives_up(self) -> bool:
        """Return whether the relays were to give up before the guest was at the destination."""
        return self._plan.fails and self._relayed and not self._outcome.missed

    def _go_on(self) -> None:
        """Let the migration end, now that the link is mended."""
        if self._gives_up:
            return
        self._source.ask("migrate-set-parameters", **{"downtime-limit": _QUICK})
        # The answers of this source may be those of before it was asked.
        deadline = time.monotonic() + 120
        while (state := self._state()) not in ("completed", "failed"):
            if state == "pre-switchover":
                self._switch_over()
                self._wait_state("device", "completed")
            assert time.monotonic() < deadline, f"the source stays in {self._status()}"
            time.sleep(0.02)

    # The verdict.

    def _fault(self, words: str) -> None:
        self._outcome.faults.append(words)

    def _judge_success(self) -> None:
        status = self._status()
        assert status["status"] == "completed", f"the source has {status}"
        self._outcome.downtime = status["downtime"]
        self._target.wait_for("completed")
        self._target.wait_for_beats(3)
        if self._source.ask("query-status")["status"] != "postmigrate":
            self._fault("the source runs, too")
        self._check_numbers(self._said())
        if self._plan.kind == "boot" and not self._memory_is_equal():
            self._fault("the memory differs")
        for relay in self._processes:
            if relay.wait() != 0:
                self._fault(f"a relay failed: {relay.told()[-1]}")

    def _judge_failure(self) -> None:
        wait_until(lambda: self._state() == "failed", "the source does not notice")
        self._source.wait_for_beats(3)
        wait_until(lambda: self._target.ended, "the destination does not end")
        if self._target.said():
            self._fault("the guest ran at the destination")
        self._check_numbers(self._saved.said + self._source.said())
        for relay in self._processes:
            if relay.wait() != 1 or "the link was cut for" not in relay.told()[-1]:
                self._fault(f"a relay says at its end {relay.told()[-1]!r}")

    def _check_numbers(self, said: bytes) -> None:
        found = beats(said)
        if -1 in found:
            self._fault(f"bad checksums behind number {found[found.index(-1) - 1]}")
        if found != list(range(1, len(found) + 1)):
            bad = next(at for at, number in enumerate(found, 1) if number != at)
            self._fault(f"number {found[bad - 1]} in place of {bad}")

    def _memory_is_equal(self) -> bool:
        return np.array_equal(self._source.static_memory(), self._target.static_memory())
