"""Chaos: `python -m tests.system.chaos --runs 2000 --seed N [--jobs 6] [--only RUN]`.

Each run moves a guest while something goes wrong; every run that breaks a rule is one line. The
same seed and number make the same run again. `judge` has the rules.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from .many import Figures, Runs, print_run, run_many
from .stock import save_guests


def main() -> int:
    """Run, and return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--jobs", type=int, default=6, help="runs at the same time")
    parser.add_argument("--only", type=int, help="this run alone, with all that was seen of it")
    parser.add_argument("--short", action="store_true", help="no waits of a minute, as in CI")
    parser.add_argument("--verbose", action="store_true", help="a line for each run")
    parser.add_argument("--qemu", choices=("source", "destination"), default="", help="which end")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-saved-") as folder:
        saved = save_guests(Path(folder)) if options.qemu == "destination" else {}
        runs = Runs(options.seed, not options.short, options.qemu, saved)
        if options.only is not None:
            return print_run(runs, options.only)
        numbers = range(options.first, options.first + options.runs)
        figures = Figures(print_all=options.verbose)
        run_many(runs, numbers, options.jobs, figures.add)
    print(figures.summary(), flush=True)
    return 1 if figures.failed else 0


if __name__ == "__main__":
    sys.exit(main())
