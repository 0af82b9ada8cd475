"""Send the sources in rounds until the rest fits the downtime limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..guest.base import Guest
from .convergence import Convergence, Round
from .reactions import Reactions
from .report import Report
from .sources import Sources, StartRound


@dataclass(kw_only=True)
class Precopy:
    """Sender of the rounds of one migration, which decides when the last one is due."""

    guest: Guest
    sources: Sources
    """All that a round sends."""
    convergence: Convergence
    """The judge of whether the rest fits the downtime limit."""
    report: Report
    """The figures of this migration."""
    reactions: Reactions
    """The reactions to rounds that do not shrink."""
    on_round: Callable[[int], None]
    """Called with the number, from 1 on, of each round that begins behind the first one."""

    def converge(self) -> None:
        """Send rounds while the guest runs, until it can be stopped for the rest."""
        while self.guest.running and not (self.reactions.forces_switchover or self._fits()):
            self.send_tracked()

    def send_tracked(self) -> None:
        """Send one round of the running guest, and react to how it went."""
        done = self._send(tracked=True)
        self.report.note_forecast()
        self.reactions.round_done(done, fits=self._fits())

    def send_last(self) -> None:
        """Send the round of the paused guest."""
        self._send(tracked=False)

    def _fits(self) -> bool:
        return self.convergence.should_switch_over(self.report.switchover_bandwidth)

    def _send(self, *, tracked: bool) -> Round:
        if self.report.round:
            self.on_round(self.report.round + 1)
        self.report.round_begins()
        self.sources.iterate(StartRound(self.report.round, tracked))
        done = self.report.round_ends()
        self.convergence.round_done(done)
        return done
