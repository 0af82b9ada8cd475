"""Damage streams at random and read them: `python -m tests.fuzz.damaged --count N STREAM...`.

Each variant is read as a whole stream (where does it end?) or with the reader that goes on behind
damage. Neither may hang, take memory without bounds, or raise anything but a StreamError.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from vmferry.protocol.wire.stream import section_footer

from tests.fuzz.targets import harmless

SECONDS = 60
"""Limit of the time for one variant, in seconds, on a machine that does other things, too."""
MEMORY = 512 << 20
"""Bytes that all variants together may take beyond what the first ones took."""
WARM = 12
"""Variants after which everything is loaded that takes memory once."""

Damage = Callable[[bytes, random.Random], bytes]


def _flips(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 50))):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data))
    return start, min(len(data), start + chance.choice((1, 7, 512, 4096, 65536)))


def _hole(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + bytes(end - start) + data[end:]


def _noise(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + chance.randbytes(end - start) + data[end:]


def _lost(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + data[end:]


def _twice(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:end] + data[start:]


def _behind(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data + chance.choice(
        (bytes(5000), chance.randbytes(5000), data[start:end], data[start:])
    )


def _forged(data: bytes, chance: random.Random) -> bytes:
    """Forge footers, ends and heads of sections, as a guest may write them, near the end."""
    changed = bytearray(data)
    first = max(0, len(data) - 120_000)
    for _ in range(chance.choice((1, 5, 200))):
        footer = section_footer(chance.randrange(40))
        start, end = first, len(data)
        piece = chance.choice((footer, footer + b"\0", footer + b"\0\6\0\0\0\2{}", data[-3000:]))
        at = chance.randrange(start, max(start + 1, end - len(piece)))
        changed[at : at + len(piece)] = piece
    return bytes(changed)


KINDS: dict[str, Damage] = {
    "flips": _flips,
    "cut": _cut,
    "hole": _hole,
    "noise": _noise,
    "lost": _lost,
    "twice": _twice,
    "behind": _behind,
    "forged": _forged,
}
READERS = ("reader", "partial", "verify", "partial")
"""Names of the targets, which take turns."""


class HangError(Exception):
    """A variant took longer than SECONDS."""


@dataclass
class Figures:
    """Numbers of variants by kind and target, their longest time, and their growth in memory."""

    variants: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    grown: int = 0


def _hang(_: int, __: FrameType | None) -> None:
    raise HangError


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run(streams: Sequence[bytes], count: int, seed: int = 0) -> Figures:
    """Read `count` variants of these streams, the kinds of damage in turn. Raises what went wrong.

    A variant is told by `seed` and its number alone, which are in the notes of what is raised.
    """
    figures, first = Figures(), 0
    before = signal.signal(signal.SIGALRM, _hang)
    try:
        for number in range(count):
            kind = [*KINDS][number % len(KINDS)]
            target = READERS[number // len(KINDS) % len(READERS)]
            chance = random.Random(f"{seed}/{number}")
            data = KINDS[kind](chance.choice(streams), chance)
            start = time.monotonic()
            signal.alarm(SECONDS)
            try:
                harmless(target, data)
            except BaseException as error:
                message = f"variant {number} of seed {seed}: {kind}, read by {target}"
                raise AssertionError(message) from error
            finally:
                signal.alarm(0)
            figures.slowest = max(figures.slowest, time.monotonic() - start)
            figures.variants[f"{kind}, {target}"] += 1
            if number < WARM:
                first = _peak()
            figures.grown = _peak() - first
            assert figures.grown < MEMORY, f"{figures.grown} more bytes after variant {number}"
    finally:
        signal.signal(signal.SIGALRM, before)
    return figures


def main() -> None:
    """Run, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.damaged", description=__doc__)
    parser.add_argument("streams", nargs="+", type=Path, metavar="STREAM")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    figures = run([path.read_bytes() for path in given.streams], given.count, given.seed)
    for variant, count in sorted(figures.variants.items()):
        print(f"{count:7} {variant}")
    print(f"{figures.variants.total():7} variants, each without a hang or a traceback")
    print(f"slowest {figures.slowest:.2f} s; memory grew by {figures.grown >> 20} MiB")


if __name__ == "__main__":
    main()
