"""The rate limit, on a clock of its own."""

from __future__ import annotations

import pytest
from vmferry.transport.rate import RateLimiter


def test_rate_is_kept() -> None:
    """Broken: the link would get more, or much less, than the user allowed."""
    now = [0.0]
    limiter = RateLimiter(10_000_000, lambda: now[0])
    sent = 0
    while now[0] < 10:
        delay = limiter.delay()
        now[0] += delay
        if not delay:
            limiter.sent(300_000)
            sent += 300_000
    assert sent == pytest.approx(100_000_000, rel=0.05)


def test_no_limit_and_change_while_running() -> None:
    """Broken: a raised limit would only work in the next migration."""
    limiter = RateLimiter(None, lambda: 0.0)
    limiter.sent(1 << 40)
    assert limiter.delay() == 0
    limiter.set_limit(1000)
    limiter.sent(1000)
    assert limiter.delay() > 0
    limiter.set_limit(None)
    assert limiter.delay() == 0
