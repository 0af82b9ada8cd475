"""Forecast a migration from the rounds that a relay watches, and advise when it stalls."""

from __future__ import annotations

from ...relay.view import StreamView, WatchedRound
from ...sender.convergence import MOMENT, Convergence, Round
from ...sender.stall import Explanation, Remedy, Situation, Stall, StallDetector, explain
from ...transport.settings import DOWNTIME_LIMIT

_OPTIONS = {
    Remedy.MAX_BANDWIDTH: "this relay's --max-bandwidth",
    Remedy.COMPRESS: "this relay's --compress",
    Remedy.AUTO_CONVERGE: "the source's capability auto-converge (migrate-set-capabilities)",
    Remedy.DOWNTIME_LIMIT: "the source's downtime-limit (migrate-set-parameters) of",
}
"""Remedies for a stall in words for the user of a relay, by QMP at the source or at the near relay.
"""


class RelayForecast:
    """Forecasts for one stream; `max_bandwidth` is the relay's own limit, in bytes per second.

    The stream does not carry the source's downtime limit, so QEMU's default is assumed.
    """

    def __init__(self, view: StreamView, max_bandwidth: int) -> None:
        self._view = view
        self._max_bandwidth = max_bandwidth
        self._convergence = Convergence(view.total, DOWNTIME_LIMIT.default / 1000)
        self._detector = StallDetector()
        self._seen = 0
        self._last: WatchedRound | None = None
        self.stall: Explanation | None = None
        """Why the rounds do not shrink, and what would help; None while they do."""

    def update(self, ratio: float, zstd: float | None) -> None:
        """Take in the rounds that have ended.

        `ratio`: bytes of the stream for each byte on the link; `zstd`: the part of the stream that
        zstd would leave, where it is not on.
        """
        for done in self._view.finished:
            if done.number >= self._seen:
                self._seen, self._last = done.number + 1, done
                result = self._round(done)
                self._convergence.round_done(result)
                self._detector.round_done(result)
                self.stall = self._explain(ratio, zstd) if self._detector.stalled else None

    def _round(self, done: WatchedRound) -> Round:
        size = done.pages * self._view.page_size
        return Round(done.number, size, done.size, done.seconds, done.seconds)

    @property
    def _bandwidth(self) -> float:
        """Return the bytes of the stream per second in the last round."""
        return 0.0 if self._last is None else self._last.size / max(self._last.seconds, MOMENT)

    @property
    def downtime(self) -> float | None:
        """Return the expected downtime in seconds; None before a round has shown it."""
        if not self._convergence.knows_guest:
            return None
        return self._convergence.expected_downtime(self._bandwidth)

    def remaining(self, spent: float) -> float | None:
        """Return the seconds to the end, `spent` seconds into the present round; None: unknown.

        In round 0, that is the rest of this round alone.
        """
        view = self._view
        if view.ended:
            return 0.0
        if not self._convergence.knows_guest:
            part = view.pages_in_round * view.page_size / max(view.total, 1)
            return spent / part - spent if view.round == 0 and 0 < part <= 1 else None
        bandwidth = self._bandwidth
        left = self._convergence.remaining_seconds(bandwidth, bandwidth)
        return None if left is None else max(0.0, left - spent)

    def _explain(self, ratio: float, zstd: float | None) -> Explanation:
        """Return why rounds do not shrink, in bytes on the link."""
        scale = max(ratio, MOMENT)
        stall = explain(
            Situation(
                bandwidth=self._bandwidth / scale,
                left=self._convergence.expected_sent / scale,
                downtime=self._convergence.expected_downtime(self._bandwidth),
                downtime_limit=self._convergence.downtime_limit,
                max_bandwidth=self._max_bandwidth,
                # The relay keeps to its limit while the guest is stopped, too.
                switchover_is_known=True,
                delta=None,
                zstd=zstd,
                cache_miss_rate=0.0,
                cache_size=0,
                can_slow=True,
            )
        )
        reason = f"{stall.reason} if the source has QEMU's default"
        advice = tuple(one for one in stall.advice if one.remedy in _OPTIONS)
        return Stall(reason, advice).explain(_OPTIONS.__getitem__)
