"""Plan one run: a guest, a pair of relays, and a cut of the link at some moment."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.relay.network.guests import KINDS

MIB = 1 << 20
PHASES = ("round 0", "later round", "switchover", "end", "return path")
"""Phases of a migration in which the link is cut.

`round 0` and `later round` of the source. `switchover`: the guest has stopped. `end`: the guest
runs at the destination, and the source may not know it yet. `return path`: at any time from round 0
to the end, and only what the far host sends is lost.
"""
VERSIONS = (("7.2", "7.2"), ("10", "10"), ("7.2", "10"))
"""Versions of QEMU at source and destination."""
CHANNELS = 2
"""Number of multifd channels."""


@dataclass(frozen=True)
class Plan:
    """One run, as its seed and its number say."""

    number: int
    kind: str
    versions: tuple[str, str]
    multifd: bool
    connections: int
    compress: str
    rate: int
    """Bytes a second of the link."""
    bandwidth: int
    """Limit of the source QEMU, in bytes a second; 0: it sends as the link takes it."""
    phase: str
    reset: bool
    """True if the cut also resets the connections."""
    seconds: float
    """Length of the cut in seconds."""
    moment: float
    """Moment of the cut in its phase, from 0 to 1."""
    reconnect: float = 300
    """Seconds after which the relays give up."""

    @property
    def fails(self) -> bool:
        """Return whether the relays give up."""
        return self.seconds > self.reconnect

    def __str__(self) -> str:
        inside = f"multifd {CHANNELS}" if self.multifd else "one channel"
        kind = "reset" if self.reset else "drop"
        limit = f", QEMU {self.bandwidth // MIB} MiB/s" if self.bandwidth else ""
        give_up = f", given up after {self.reconnect:g} s" if self.fails else ""
        return (
            f"{self.kind} {' to '.join(self.versions)}, {inside}, {self.connections} connections,"
            f" {self.compress}, link {self.rate // MIB} MiB/s{limit}: {kind} for"
            f" {self.seconds:g} s at {self.phase} {self.moment:.2f}{give_up}"
        )


def make_plan(seed: int, number: int, longest: float = 30) -> Plan:
    """Return the plan of a run; the phases take turns, all else is drawn."""
    drawn = random.Random(f"{seed} {number}")
    phase = PHASES[number % len(PHASES)]
    seconds = drawn.choice([3.0, 3.0, 30.0])
    reconnect = 300.0
    if phase in ("round 0", "later round") and drawn.random() < 0.15:
        # A relay notices that packets are lost after 10 s.
        seconds, reconnect = 30.0, 4.0
    kind, versions = drawn.choice(KINDS), drawn.choice(VERSIONS)
    if kind == "linux":
        versions = ("10", "10")
    return Plan(
        number,
        kind,
        versions,
        drawn.random() < 0.4,
        drawn.choice([1, 4]),
        drawn.choice(["none", "zstd", "adaptive"]),
        drawn.choice([16, 100]) * MIB,
        # Without a limit the relay takes the whole guest at once, and there are no rounds.
        (12 if "round" in phase else drawn.choice([0, 12])) * MIB,
        phase,
        drawn.random() < 0.5 and phase != "return path",
        min(seconds, longest) if reconnect == 300 else seconds,
        drawn.random(),
        reconnect,
    )
