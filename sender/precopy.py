"""Send the sources in rounds until the rest fits the downtime limit."""

from __future__ import annotations

from collections.abc import Callable

from ..guest.base import Guest
from .convergence import Convergence, Round
from .reactions import Reactions
from .report import Report
from .sources import Sources, StartRound


class Precopy:
    """Sender of the rounds of one migration, which decides when the last one is due.

    `on_round` is called with the number, from 1 on, of each round that begins behind the first one.
    """

    def __init__(
        self,
        guest: Guest,
        sources: Sources,
        convergence: Convergence,
        report: Report,
        reactions: Reactions,
        on_round: Callable[[int], None],
    ) -> None:
        self._guest = guest
        self._sources = sources
        self._convergence = convergence
        self._report = report
        self._reactions = reactions
        self._on_round = on_round

    def converge(self) -> None:
        """Send rounds while the guest runs, until it can be stopped for the rest."""
        while self._guest.running and not (self._reactions.forces_switchover or self._fits()):
            self.send_tracked()

    def send_tracked(self) -> None:
        """Send one round of the running guest, and react to how it went."""
        done = self._send(tracked=True)
        self._report.note_forecast()
        self._reactions.round_done(done, fits=self._fits())

    def send_last(self) -> None:
        """Send the round of the paused guest."""
        self._send(tracked=False)

    def _fits(self) -> bool:
        return self._convergence.should_switch_over(self._report.switchover_bandwidth)

    def _send(self, *, tracked: bool) -> Round:
        if self._report.round:
            self._on_round(self._report.round + 1)
        self._report.round_begins()
        self._sources.iterate(StartRound(self._report.round, tracked))
        done = self._report.round_ends()
        self._convergence.round_done(done)
        return done
