"""Test that a relay keeps nothing of migrations that have ended."""

from __future__ import annotations

import gc
from pathlib import Path

from vmferry.relay.session import Session

from tests.relay.pair import Pair
from tests.relay.test_pair import MIB, exchange, run, said, some_bytes


def test_sessions_do_not_stay(tmp_path: Path) -> None:
    """Broken: a relay would grow with each migration, by its buffers."""

    async def test(pair: Pair) -> None:
        for _ in range(4):
            await exchange(pair, some_bytes(1, 2 * MIB), b"done")
        await said(pair, "a near relay has connected", 4)
        # That of the last migration may be there still, at both ends.
        assert sum(isinstance(one, Session) for one in gc.get_objects()) <= 2

    run(test, lambda: Pair(tmp_path))
