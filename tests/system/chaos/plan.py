"""Plan one run, all of it made from the seed and the run's number.

A plan says which commands run with which options, and what happens to them: signals, a bad link, a
cancel; each at a mark of the handover, at a place in the stream, or some time behind one of these.
"""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field

MIB = 1 << 20
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FATAL = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
ROLES = ("command", "forkserver", "transport", "worker", "guest")
AIMED = ("end", "shut", "confirm", "confirmed")
"""Marks around the handover, in the order in which they pass."""


@dataclass(frozen=True)
class Trigger:
    """`delay` seconds behind `mark`; with `before`, the mark itself is still to be passed."""

    mark: str
    before: bool = False
    delay: float = 0.0

    def __str__(self) -> str:
        place = ("before " if self.before else "after ") + self.mark
        return place + (f" + {self.delay:.2f} s" if self.delay else "")


@dataclass(frozen=True)
class Signal:
    """A signal to a process; a SIGSTOP is followed by a SIGCONT `seconds` later."""

    trigger: Trigger
    side: str
    role: str
    number: signal.Signals
    seconds: float = 0.0

    def __str__(self) -> str:
        long = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.number.name}{long} to {self.side} {self.role} {self.trigger}"


@dataclass(frozen=True)
class Fault:
    """Something that the link does: hold, slow, stall, swallow, half, reset or close."""

    trigger: Trigger
    kind: str
    direction: str = "both"
    seconds: float = 0.0

    def __str__(self) -> str:
        long = f" {self.seconds:.2f} s" if self.seconds else ""
        return f"link: {self.kind} {self.direction}{long} {self.trigger}"


@dataclass(frozen=True)
class Cancel:
    """`migrate_cancel` at a source that is served, or SIGINT to one that is not."""

    trigger: Trigger

    def __str__(self) -> str:
        return f"cancel {self.trigger}"


Deed = Signal | Fault | Cancel


@dataclass(frozen=True)
class Plan:
    """All choices of one run.

    `final`: how a connection is ended that is dead, and whose one end waits on rightly. `patient`:
    guests that are left alone shall end by themselves. `long`: there is time to wait for what
    happens after a minute. `at_rest`: the folder of the guest that is
    sent, where it is none that runs.
    """

    seed: int
    number: int
    source: str
    destination: str
    guest: str
    unix: bool
    size: int
    rate: int
    options: tuple[str, ...]
    receive_options: tuple[str, ...]
    return_path: bool
    final: str
    patient: bool
    long: bool
    at_rest: str = ""
    deeds: tuple[Deed, ...] = field(default=())

    @property
    def stopped(self) -> float:
        """Return the seconds for which processes are stopped and links held up, at most."""
        return sum(deed.seconds for deed in self.deeds if not isinstance(deed, Cancel))

    @property
    def dead_link(self) -> bool:
        """Return whether the link stops passing for ever."""
        return any(isinstance(d, Fault) and d.kind in ("stall", "swallow") for d in self.deeds)

    def __str__(self) -> str:
        kinds = f"{self.source} {' '.join(self.options)} -> {self.destination}"
        kinds += f" {' '.join(self.receive_options)} {self.guest}{' unix' if self.unix else ''}"
        return f"{' '.join(kinds.split())}; " + "; ".join(map(str, self.deeds))


def make_plan(seed: int, number: int, *, long: bool) -> Plan:
    """Make a run's plan. `long`: SIGSTOPs of up to 90 s, and links that stay dead for a minute."""
    return _Planner(random.Random(f"{seed} {number}"), long).plan(seed, number)


def _roles(options: tuple[str, ...], *, guest: bool) -> list[str]:
    """Return the roles of the processes that a side has; those that matter more several times."""
    roles = ["command"] * 5 + ["transport"] * 4 + ["forkserver"] * 2
    return roles + ["worker"] * 2 * ("--workers" in options) + ["guest"] * 3 * guest


class _Planner:
    def __init__(self, chance: random.Random, long: bool) -> None:
        self._chance = chance
        self._long = long
        self._marks: tuple[str, ...] = AIMED
        self._roles: dict[str, list[str]] = {}
        self._size = 0

    def plan(self, seed: int, number: int) -> Plan:
        """Choose everything for a run."""
        chance = self._chance
        self._size = chance.choice((8, 8, 12, 16)) * MIB
        guest = "dir" if chance.random() < 0.25 else "synthetic"
        source = "serve" if chance.random() < 0.25 else "send"
        destination = "serve" if chance.random() < 0.35 else "receive"
        options, return_path = self._send_options() if source == "send" else ((), True)
        if "--compress" in options:
            self._marks = ("shut", "confirmed")
        if not return_path:
            self._marks = ("end", "forward closed")
        receive_options = self._workers() if destination == "receive" else ()
        self._roles = {
            "source": _roles(options, guest=True),
            "destination": _roles(receive_options, guest=guest == "synthetic"),
        }
        return Plan(
            seed=seed,
            number=number,
            source=source,
            destination=destination,
            guest=guest,
            unix=chance.random() < 0.15,
            size=self._size,
            rate=chance.choice((1, 2, 4)) * MIB,
            options=options,
            receive_options=receive_options,
            return_path=return_path,
            final=chance.choice(("reset", "close", "TERM")),
            patient=chance.random() < 0.05,
            long=self._long,
            deeds=tuple(self._deeds(source)),
        )

    def _workers(self) -> tuple[str, ...]:
        return ("--workers", "1") if self._chance.random() < 0.25 else ()

    def _send_options(self) -> tuple[tuple[str, ...], bool]:
        chance = self._chance
        options = list(self._workers())
        if chance.random() < 0.2:
            options.append("--xbzrle")
        if chance.random() < 0.15:
            options += ["--compress", chance.choice(("zstd", "adaptive"))]
        return_path = chance.random() >= 0.1
        if not return_path:
            options.append("--no-return-path")
        return tuple(options), return_path

    def _deeds(self, source: str) -> list[Deed]:
        """Choose one or two signals, often a bad link beside them, sometimes a cancel."""
        chance = self._chance
        deeds: list[Deed] = []
        link, cancelled = (
            chance.random() < 0.6,
            chance.random() < (0.5 if source == "serve" else 0.1),
        )
        signals = chance.choices((0, 1, 2), (10 if link or cancelled else 0, 65, 25))[0]
        if link:
            deeds.append(self._fault())
        near = next(iter(deeds), None)
        deeds += [self._signal(near) for _ in range(signals)]
        if cancelled:
            deeds.append(Cancel(self._trigger(near)))
        if any(isinstance(deed, Fault) and deed.kind in ("stall", "swallow") for deed in deeds):
            deeds += self._end_of_dead_link()
        return deeds

    def _end_of_dead_link(self) -> list[Deed]:
        """Choose how a run with a dead link ends: the source waits a minute, too long for a short
        loop.
        """
        if self._long and self._chance.random() < 0.7:
            return []
        first = next(iter(self._marks))
        wait = self._chance.uniform(0.5, 5)
        kind = self._chance.choice(("cancel", "reset", "close"))
        if kind == "cancel":
            return [Cancel(Trigger(first, delay=wait)), Cancel(Trigger("stalled", delay=wait))]
        return [Fault(Trigger("stalled", delay=wait), kind)]

    def _fault(self) -> Fault:
        chance = self._chance
        kind = chance.choices(
            ("hold", "slow", "reset", "close", "half", "stall", "swallow"),
            (40, 10, 15, 10, 10, 10, 5),
        )[0]
        direction = chance.choice(("forward", "back", "both"))
        seconds = 0.0
        if kind == "hold":
            seconds = chance.choice((0.2, 1.0, 2.0, 3.0, 6.0))
        elif kind == "slow":
            seconds = chance.choice((0.01, 0.05, 0.2))
        elif kind in ("reset", "close"):
            direction = "both"
        trigger = self._trigger(None)
        if trigger.mark == "begun":
            trigger = Trigger("connected", delay=trigger.delay)
        return Fault(trigger, kind, direction, seconds)

    def _signal(self, near: Deed | None) -> Signal:
        chance = self._chance
        number = chance.choices(
            (
                signal.SIGKILL,
                signal.SIGSTOP,
                signal.SIGTERM,
                signal.SIGHUP,
                signal.SIGINT,
            ),
            (40, 25, 15, 12, 8),
        )[0]
        seconds = self._stop_seconds() if number is signal.SIGSTOP else 0.0
        side = chance.choice(("source", "destination"))
        role = chance.choice(self._roles[side])
        return Signal(self._trigger(near), side, role, number, seconds)

    def _stop_seconds(self) -> float:
        """Return a length of a stop: mostly short, with a heavy tail."""
        chance = self._chance
        kind = chance.choices(("short", "middle", "long"), (75, 17, 8))[0]
        if kind == "short":
            return chance.uniform(1, 3)
        if kind == "middle":
            return chance.uniform(3, 15 if self._long else 5)
        return chance.uniform(15, 90) if self._long else chance.uniform(5, 8)

    def _trigger(self, near: Deed | None) -> Trigger:
        """Choose a mark of the handover, a random moment, or one in which more happens."""
        chance = self._chance
        if near is not None and chance.random() < 0.5:
            seconds = getattr(near, "seconds", 0.0)
            delay = near.trigger.delay + chance.uniform(0, max(seconds, 0.3))
            return Trigger(near.trigger.mark, near.trigger.before, delay)
        if chance.random() < 0.65:
            delay = chance.choice((0.0, 0.0, 0.0, chance.uniform(0, 0.05), chance.uniform(0, 0.5)))
            return Trigger(chance.choice(self._marks), chance.random() < 0.5, delay)
        if near is None and chance.random() < 0.1:
            return Trigger("begun", delay=chance.uniform(0, 1.5))
        mark = chance.choices(("started", "connected", "byte", "closed"), (25, 15, 45, 15))[0]
        if mark == "byte":
            return Trigger(f"byte {chance.randrange(self._size)}")
        limits = {"started": 3.0, "connected": 0.8, "closed": 0.5}
        return Trigger(mark, delay=chance.uniform(0, limits[mark]))
