"""Send RAM in rounds until the rest fits the downtime limit, and react where that fails.

The reactions are a throttle of the guest (auto-converge), and what the user chose for a stall.
"""

from __future__ import annotations

from collections.abc import Callable

from ..guest.base import Guest
from ..guest.errors import MigrationCancelledError
from ..transport.settings import OnStall
from .convergence import Convergence, Round
from .limits import Limits
from .processes import Processes
from .report import Report
from .stall import StallDetector
from .throttle import AutoConverge, ThrottleParameters
from .worker import StartRound


class Precopy:
    """Sender of the rounds of one migration, which decides when the last one is due.

    `on_round` is called with the number, from 1 on, of each round that begins behind the first one;
    `on_stall` is called when a stall begins, and not again for a later one.
    """

    def __init__(
        self,
        guest: Guest,
        processes: Processes,
        convergence: Convergence,
        limits: Limits,
        report: Report,
        throttle: ThrottleParameters | None,
        on_round: Callable[[int], None],
        on_stall: Callable[[], None],
    ) -> None:
        self._guest = guest
        self._processes = processes
        self._convergence = convergence
        self._limits = limits
        self._report = report
        self._throttle = None if throttle is None else AutoConverge(throttle)
        report.throttle = self._throttle
        self._on_round = on_round
        self._on_stall = on_stall
        self._stall = StallDetector()
        self._told = False

    def converge(self) -> None:
        """Send rounds while the guest runs, until it can be stopped for the rest."""
        while self._guest.running and not self._should_switch_over():
            self.send_tracked()

    def send_tracked(self) -> None:
        """Send one round of the running guest, and react to how it went."""
        done = self._send(tracked=True)
        self._report.note_forecast()
        self._adapt_throttle(done)
        self._detect_stall(done)

    def send_last(self) -> None:
        """Send the round of the paused guest."""
        self._send(tracked=False)

    def release_guest(self) -> None:
        """Remove the throttle, so that the guest runs at full speed wherever it is."""
        if self._throttle is not None and self._throttle.percentage:
            self._throttle.release()
            self._guest.throttle(0)

    def _should_switch_over(self) -> bool:
        forced = self._limits.on_stall is OnStall.SWITCHOVER and self._stall.stalled
        return forced or self._fits()

    def _fits(self) -> bool:
        return self._convergence.should_switch_over(self._report.switchover_bandwidth)

    def _send(self, *, tracked: bool) -> Round:
        if self._report.round:
            self._on_round(self._report.round + 1)
        self._report.round_begins()
        self._processes.run_round(StartRound(self._report.round, tracked))
        done = self._report.round_ends()
        self._convergence.round_done(done)
        return done

    def _adapt_throttle(self, done: Round) -> None:
        """Throttle the guest if it dirties RAM too fast."""
        if self._throttle is None:
            return
        before = self._throttle.percentage
        self._throttle.round_done(done)
        if self._throttle.percentage != before:
            self._guest.throttle(self._throttle.percentage)

    def _detect_stall(self, done: Round) -> None:
        """Report a stall that no throttle can end.

        Raises MigrationCancelledError if the user wants that.
        """
        self._stall.round_done(done)
        if self._throttle is not None and not self._throttle.at_maximum:
            self._stall.begin_again()
        if not self._stall.stalled or self._fits():
            self._report.stall = None
            return
        if self._report.stall is None:
            self._report.stall = self._report.explain_stall()
        if not self._told:
            self._told = True
            self._on_stall()
        if self._limits.on_stall is OnStall.CANCEL:
            raise MigrationCancelledError(f"cancelled: {self._report.stall.reason}")
