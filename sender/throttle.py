"""Auto-converge: slow the guest down, step by step, while it dirties RAM faster than is sent.

Source: QEMU's documentation, docs/devel/migration/features and the QMP reference: capability
`auto-converge`, parameters `cpu-throttle-initial`, `cpu-throttle-increment`, `max-cpu-throttle` and
`throttle-trigger-threshold`. No clock and no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .convergence import Round

PERIOD = 1.0
"""Seconds of rounds that are judged together, at least."""
PATIENCE = 2
"""Such periods in succession before a step."""


class ThrottleError(ValueError):
    """Not a percentage that it can have; one line."""


@dataclass(frozen=True)
class ThrottleParameters:
    """Percentages of the guest's time that it is kept from running: first, each step, at most.

    `trigger_threshold`: a period outruns the link when what had to be sent in it is more than this
    percentage of what was sent while the guest dirtied it. Raises ThrottleError.
    """

    initial: int = 20
    increment: int = 10
    maximum: int = 99
    trigger_threshold: int = 50

    def __post_init__(self) -> None:
        for name, value, most in (
            ("cpu-throttle-initial", self.initial, 99),
            ("cpu-throttle-increment", self.increment, 99),
            ("max-cpu-throttle", self.maximum, 99),
            ("throttle-trigger-threshold", self.trigger_threshold, 100),
        ):
            if not 1 <= value <= most:
                raise ThrottleError(f"{name} {value}: not from 1 to {most}")
        if self.maximum < self.initial:
            message = f"max-cpu-throttle {self.maximum} is less than cpu-throttle-initial"
            raise ThrottleError(f"{message} {self.initial}")


class AutoConverge:
    """The percentage after each round.

    What counts is what goes on the wire: a guest whose changes are small is not slowed down for
    the number of its pages.
    """

    def __init__(self, parameters: ThrottleParameters) -> None:
        self._parameters = parameters
        self.percentage = 0
        """Of the guest's time, from now on."""
        self.highest = 0
        """The most that it was slowed down by."""
        self._before: int | None = None
        self._sent = self._sent_before = 0
        self._seconds = 0.0
        self._periods = 0

    @property
    def at_maximum(self) -> bool:
        """No further step is left."""
        return self.percentage >= self._parameters.maximum

    def round_done(self, done: Round) -> None:
        """Take in a finished round: what it sent was dirtied during the one before."""
        before, self._before = self._before, done.sent_bytes
        if before is None:
            return
        self._sent += done.sent_bytes
        self._sent_before += before
        self._seconds += done.seconds
        if self._seconds < PERIOD:
            return
        outran = self._sent * 100 > self._sent_before * self._parameters.trigger_threshold
        self._sent, self._sent_before, self._seconds = 0, 0, 0.0
        self._periods = self._periods + 1 if outran else 0
        if self._periods == PATIENCE:
            self._periods = 0
            self._step()

    def _step(self) -> None:
        first = self.percentage == 0
        more = self._parameters.initial if first else self._parameters.increment
        self.percentage = min(self.percentage + more, self._parameters.maximum)
        self.highest = self.percentage

    def release(self) -> None:
        """The guest has to run at full speed again."""
        self.percentage = 0
