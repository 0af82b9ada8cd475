"""Many migrations in a row: `python -m tests.system.in_a_row --runs 50 [--tracker NAME] [...]`.

Every tracker with every encoding and number of workers (or channels) moves a guest that writes all
the time, and that is sent in several rounds. Both memories are compared when it is stopped, and
each page is checked for itself: none may be torn, stale, lost or in the place of another. A line
for each combination; the exit status is 1 if one run was not perfect. `--seed` makes the same
guests again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from dataclasses import dataclass, field, replace

from vmferry.guest.synthetic import SyntheticGuest
from vmferry.guest.synthetic_memory import PATTERNS
from vmferry.sender.coordinator import Sender
from vmferry.sender.parameters import SendParameters
from vmferry.transport.settings import MultifdCompression, TrackerKind

from tests.sender.incoming import Incoming

ENCODINGS = {
    "plain": SendParameters(),
    "xbzrle": SendParameters(xbzrle=True),
    "zstd": SendParameters(compress="zstd"),
    "adaptive": SendParameters(compress="adaptive"),
    "multifd": SendParameters(multifd_channels=1),
    "multifd-zlib": SendParameters(multifd_channels=1, multifd_compression=MultifdCompression.ZLIB),
    "multifd-zstd": SendParameters(multifd_channels=1, multifd_compression=MultifdCompression.ZSTD),
}
"""Parameters by encoding. With multifd, a number of workers is one of channels, at least 1."""
WORKERS = (0, 1, 2, 4)
ENOUGH = 60.0
"""Seconds of downtime that any guest here fits into."""


@dataclass
class Tally:
    """Findings of the runs of one combination; `wrong` has a line for each that was wrong."""

    runs: int = 0
    rounds: int = 0
    pages: int = 0
    wrong: list[str] = field(default_factory=list)


def migrate(parameters: SendParameters, seed: int, tally: Tally) -> None:
    """Move one guest, which `seed` describes, and check it."""
    choose = random.Random(seed)
    rate, hot = choose.choice((4, 20, 80)), choose.choice((10, 50, 100))
    text = f"4M,dirty-rate={rate}M,hot={hot}%,zero=10%,pattern={choose.choice(PATTERNS)}"
    rounds = choose.randrange(2, 6)
    workers, channels = choose.randrange(3), parameters.multifd_channels
    side = Incoming("tcp:127.0.0.1:0", None if channels else workers, channels)
    source = SyntheticGuest.parse(f"{text},seed={seed % 1000}")
    sender = Sender(source, side.address, replace(parameters, downtime_limit=0))

    def on_round(number: int) -> None:
        if number > rounds:
            sender.limits.set_downtime_limit(ENOUGH)

    sender.on_round = on_round
    try:
        figures = sender.run()
        side.join()
        differ = int((source.page_digests() != side.guest.page_digests()).any(axis=1).sum())
        bad = side.guest.verify()
        tally.rounds += figures.dirty_sync_count
        tally.pages += figures.normal + figures.duplicate
        if differ or bad or figures.tracker != parameters.tracker.value:
            tally.wrong.append(
                f"seed {seed}, {text}: {differ} pages differ, {len(bad)} are wrong by themselves, "
                f"tracker {figures.tracker}, round {figures.dirty_sync_count}"
            )
    finally:
        tally.runs += 1
        source.close()
        side.close()


def run(options: argparse.Namespace) -> int:
    """Run all combinations that were asked for, and return the number of runs that were wrong."""
    wrong = 0
    for tracker, encoding, workers in itertools.product(
        options.tracker, options.encoding, options.workers
    ):
        parameters = replace(ENCODINGS[encoding], tracker=TrackerKind(tracker))
        if parameters.multifd_channels is None:
            parameters = replace(parameters, workers=workers)
        else:
            parameters = replace(parameters, multifd_channels=max(workers, 1))
        tally, began = Tally(), time.monotonic()
        for number in range(options.runs):
            migrate(parameters, options.seed + number, tally)
        seconds = time.monotonic() - began
        print(
            f"{tracker}, {encoding}, {workers} workers: {tally.runs} runs, {tally.rounds} rounds, "
            f"{tally.pages} pages, {len(tally.wrong)} wrong, {seconds:.0f} s",
            *tally.wrong,
            sep="\n  ",
            flush=True,
        )
        wrong += len(tally.wrong)
    return wrong


def main() -> int:
    """Run, and return 1 if a guest did not arrive as it was."""
    trackers = [kind.value for kind in TrackerKind if kind is not TrackerKind.AUTO]
    parser = argparse.ArgumentParser(prog="python -m tests.system.in_a_row", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="of each combination")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument(
        "--tracker", nargs="+", choices=trackers, default=["userfaultfd", "digests"]
    )
    parser.add_argument("--encoding", nargs="+", choices=list(ENCODINGS), default=list(ENCODINGS))
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    return 1 if run(options) else 0


if __name__ == "__main__":
    sys.exit(main())
