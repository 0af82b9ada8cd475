"""Many runs, several at a time, and what came of them."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from .judge import Verdict, judge
from .plan import Plan, make_plan
from .run import ENDED_WITHIN, Record, perform
from .stock import make_stock_plan
from .stock_judge import judge_stock


@dataclass(frozen=True)
class Runs:
    """Settings that all runs of a loop have in common.

    `long`: with waits of a minute. `qemu`: the side at which a QEMU is, if one is; `saved`: the
    folders of guests that are sent to it, by version.
    """

    seed: int
    long: bool = True
    qemu: str = ""
    saved: dict[str, Path] = field(default_factory=dict)

    def plan(self, number: int) -> Plan:
        """Return the plan of a run."""
        if not self.qemu:
            return make_plan(self.seed, number, long=self.long)
        plan = make_stock_plan(self.seed, number, self.qemu, long=self.long)
        folder = self.saved.get(plan.destination, "")
        return replace(plan, at_rest=str(folder))


def run_one(runs: Runs, number: int) -> tuple[Record, Verdict]:
    """Do one run in a folder of its own, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{number}-"))
    try:
        record = perform(runs.plan(number), folder)
        return record, (judge_stock if runs.qemu else judge)(record)
    finally:
        shutil.rmtree(folder)


def run_many(
    runs: Runs,
    numbers: Iterable[int],
    jobs: int,
    on_run: Callable[[Record, Verdict], None],
    seconds: float = math.inf,
) -> None:
    """Do these runs; `on_run` hears of each as it ends, in the caller's thread.

    After `seconds`, no further run is begun.
    """
    until = time.monotonic() + seconds

    def run_in_time(number: int) -> tuple[Record, Verdict] | None:
        return run_one(runs, number) if time.monotonic() < until else None

    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(run_in_time, number) for number in numbers]):
            done = future.result()
            if done is not None:
                on_run(*done)


def describe(record: Record, verdict: Verdict) -> str:
    """Return one line on a run: its number, what was done, how it ended, and what is wrong."""
    done = ", ".join(done.what for done in record.done)
    faults = " | ".join(verdict.faults)
    return f"run {record.plan.number}: {record.plan} => {done} => {verdict.outcome} => {faults}"


def print_run(runs: Runs, number: int) -> int:
    """Do one run, and print all that was seen of it."""
    record, verdict = run_one(runs, number)
    print(describe(record, verdict))
    for title, lines in (("trace", record.trace), ("link", record.link)):
        print(title, *lines, sep="\n  ")
    for side, text in record.stderr.items():
        print(f"{side}: status {record.status[side]}", *text.splitlines(), sep="\n  ")
    print(f"runs {record.runs}, {record.migration}, ended after {record.ended_after:.2f} s")
    return 1 if verdict.faults else 0


class Figures:
    """Counts runs by their outcome, and prints those that broke a rule."""

    def __init__(self, *, print_all: bool = False) -> None:
        self._print_all = print_all
        self._started = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        self._slow: list[float] = []
        self._longest = (0.0, 0)

    def add(self, record: Record, verdict: Verdict) -> None:
        """Add the figures of one run."""
        self.outcomes[verdict.outcome] += 1
        if record.ended_after > ENDED_WITHIN:
            self._slow.append(record.ended_after)
        self._longest = max(self._longest, (record.seconds, record.plan.number))
        line = describe(record, verdict)
        if verdict.faults:
            self.failed.append(line)
            print(f"FAILED {line}", flush=True)
            for side, text in record.stderr.items():
                lines = text.strip().splitlines()
                for said in lines if "Traceback" in text else lines[-3:]:
                    print(f"    {side}: {said}", flush=True)
            for what in (*record.trace, *(f"link: {event}" for event in record.link)):
                print(f"    {what}", flush=True)
        elif self._print_all:
            print(f"{record.seconds:.0f} s: {line}", flush=True)

    def summary(self) -> str:
        """Return what came of all runs."""
        seconds = time.monotonic() - self._started
        lines = [f"{sum(self.outcomes.values())} runs in {seconds:.0f} s"]
        lines += [f"{count:6} {name}" for name, count in self.outcomes.most_common()]
        if self._slow:
            slow = f"{len(self._slow)} ended later than {ENDED_WITHIN:.0f} s, at most"
            lines.append(f"{slow} {max(self._slow):.1f} s (busy machine)")
        lines.append(f"the longest, run {self._longest[1]}, took {self._longest[0]:.0f} s")
        lines.append(f"{len(self.failed)} broke a rule")
        return "\n".join(lines)
