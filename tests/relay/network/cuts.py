"""Migrations through relays whose link is cut: `python -m tests.relay.network.cuts --runs 20`.

One line a run; the same seed and number make the same run again. `run` has the rules. Needs root,
iproute2, QEMU, and for guests with Linux a kernel and busybox.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from threading import Lock

from tests.relay.network.guests import Saved, save
from tests.relay.network.plan import Plan, make_plan
from tests.relay.network.run import Outcome, Run


class Guests:
    """Guests at rest from which runs start, made once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str], Saved] = {}
        self._lock = Lock()

    def get(self, kind: str, version: str) -> Saved:
        """Return the guest of a kind that ran in a QEMU of a version."""
        with self._lock:
            if (kind, version) not in self._made:
                self._made[kind, version] = save(kind, version, self._folder / f"{kind}-{version}")
            return self._made[kind, version]


def run_plan(plan: Plan, guests: Guests, *, relayed: bool = True) -> Outcome:
    """Run a plan, whatever happens."""
    saved = guests.get(plan.kind, plan.versions[0])
    with tempfile.TemporaryDirectory(prefix="vmferry-cut-") as folder:
        try:
            return Run(plan, saved, Path(folder), relayed=relayed).run()
        except Exception:
            return Outcome([traceback.format_exc()])


def main() -> int:
    """Run, and return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.relay.network.cuts", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--longest", type=float, default=30, help="longest cut in seconds")
    parser.add_argument("--only", type=int, help="this run alone, with what the relays say")
    parser.add_argument(
        "--without-relays", action="store_true", help="no relays and no cut: QEMU's own faults"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    numbers = range(options.first, options.first + options.runs)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    plans = [make_plan(options.seed, number, options.longest) for number in numbers]
    failed = missed = 0
    with (
        tempfile.TemporaryDirectory(prefix="vmferry-saved-") as folder,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        guests = Guests(Path(folder))
        run = partial(run_plan, guests=guests, relayed=not options.without_relays)
        running = {pool.submit(run, plan): plan for plan in plans}
        for done in as_completed(running):
            plan, outcome = running[done], done.result()
            failed += bool(outcome.faults)
            missed += outcome.missed
            print(f"{plan.number}: {plan}: {outcome}", flush=True)
            if outcome.faults or options.only is not None:
                print(*(f"    {line}" for line in outcome.told), sep="\n", flush=True)
    print(f"{len(plans)} runs, {failed} failed, {missed} had ended before the cut")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
