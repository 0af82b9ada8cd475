"""Auto-converge: throttle the guest step by step while it dirties RAM faster than it is sent.

Source: QEMU's documentation, docs/devel/migration/features and the QMP reference: capability
`auto-converge`, parameters `cpu-throttle-initial`, `cpu-throttle-increment`, `max-cpu-throttle` and
`throttle-trigger-threshold`. This module reads no clock and does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.errors import ParameterError
from ..transport.settings import (
    CPU_THROTTLE_INCREMENT,
    CPU_THROTTLE_INITIAL,
    MAX_CPU_THROTTLE,
    THROTTLE_TRIGGER_THRESHOLD,
)
from .convergence import Round

PERIOD = 1.0
"""Shortest time, in seconds, of the rounds that are judged together as one period."""
PATIENCE = 2
"""Periods in succession that must outrun the link before the throttle increases."""


@dataclass(frozen=True)
class ThrottleParameters:
    """The parameters of the throttle: percentages of the time for which the guest is stopped.

    The throttle starts at `initial`, grows by `increment` and ends at `maximum`. A period outruns
    the link when the bytes sent in it exceed `trigger_threshold` percent of those sent while the
    guest dirtied them. Raises ParameterError.
    """

    initial: int = CPU_THROTTLE_INITIAL.default
    increment: int = CPU_THROTTLE_INCREMENT.default
    maximum: int = MAX_CPU_THROTTLE.default
    trigger_threshold: int = THROTTLE_TRIGGER_THRESHOLD.default

    def __post_init__(self) -> None:
        CPU_THROTTLE_INITIAL.check(self.initial)
        CPU_THROTTLE_INCREMENT.check(self.increment)
        MAX_CPU_THROTTLE.check(self.maximum)
        THROTTLE_TRIGGER_THRESHOLD.check(self.trigger_threshold)
        if self.maximum < self.initial:
            message = f"max-cpu-throttle {self.maximum} is less than cpu-throttle-initial"
            raise ParameterError(f"{message} {self.initial}")


class AutoConverge:
    """The throttle percentage, decided after each round.

    The bytes on the wire count, not the number of pages, so a guest whose changes are small is not
    throttled for touching many pages.
    """

    def __init__(self, parameters: ThrottleParameters) -> None:
        self._parameters = parameters
        self.percentage = 0
        """Percentage of the time for which the guest is stopped from now on."""
        self.highest = 0
        """Highest percentage so far."""
        self._before: int | None = None
        self._sent = self._sent_before = 0
        self._seconds = 0.0
        self._periods = 0

    @property
    def at_maximum(self) -> bool:
        """Return whether no further step is left."""
        return self.percentage >= self._parameters.maximum

    def round_done(self, done: Round) -> None:
        """Record a finished round; what it sent was dirtied during the one before."""
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
        """Reset the percentage: the guest runs at full speed again."""
        self.percentage = 0
