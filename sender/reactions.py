"""React to rounds that do not shrink: throttle the guest, or do what the user chose for a stall."""

from __future__ import annotations

from collections.abc import Callable

from ..guest.base import Guest
from ..guest.errors import MigrationCancelledError
from ..transport.settings import OnStall
from .convergence import Round
from .limits import Limits
from .report import Report
from .stall import StallDetector
from .throttle import AutoConverge, ThrottleParameters


class Reactions:
    """Reactions to a guest that dirties its RAM faster than it is sent.

    `on_stall` is called when a stall begins, and not again for a later one.
    """

    def __init__(
        self,
        guest: Guest,
        throttle: ThrottleParameters | None,
        limits: Limits,
        report: Report,
        on_stall: Callable[[], None],
    ) -> None:
        self._guest = guest
        self._throttle = None if throttle is None else AutoConverge(throttle)
        self._limits = limits
        self._report = report
        report.throttle = self._throttle
        self._on_stall = on_stall
        self._stall = StallDetector()
        self._told = False

    @property
    def forces_switchover(self) -> bool:
        """Return whether the guest is to be stopped although the rest does not fit."""
        return self._limits.on_stall is OnStall.SWITCHOVER and self._stall.stalled

    def round_done(self, done: Round, *, fits: bool) -> None:
        """React to a finished round; `fits`: the rest fits the downtime limit now.

        Raises MigrationCancelledError if the user wants that on a stall.
        """
        self._adapt_throttle(done)
        self._detect_stall(done, fits=fits)

    def release_guest(self) -> None:
        """Remove the throttle, so that the guest runs at full speed wherever it is."""
        if self._throttle is not None and self._throttle.percentage:
            self._throttle.release()
            self._guest.throttle(0)

    def _adapt_throttle(self, done: Round) -> None:
        """Throttle the guest if it dirties RAM too fast."""
        if self._throttle is None:
            return
        before = self._throttle.percentage
        self._throttle.round_done(done)
        if self._throttle.percentage != before:
            self._guest.throttle(self._throttle.percentage)

    def _detect_stall(self, done: Round, *, fits: bool) -> None:
        """Report a stall that no throttle can end."""
        self._stall.round_done(done)
        if self._throttle is not None and not self._throttle.at_maximum:
            self._stall.begin_again()
        if not self._stall.stalled or fits:
            self._report.stall = None
            return
        if self._report.stall is None:
            self._report.stall = self._report.explain_stall()
        if not self._told:
            self._told = True
            self._on_stall()
        if self._limits.on_stall is OnStall.CANCEL:
            raise MigrationCancelledError(f"cancelled: {self._report.stall.reason}")
