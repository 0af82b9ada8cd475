"""The device state of a synthetic guest, which also comes from hostile streams."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from vmferry.guest.errors import GuestError
from vmferry.guest.synthetic_state import State, pack, unpack

TABLE = np.array([1, 2, 3, 2**32 - 1], np.uint32)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16))
STATE = State(True, 5, 6, 7, 8, "text", TABLE)


@given(
    table=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
    figures=st.tuples(*[st.integers(0, 2**64 - 1)] * 4),
    runs_on=st.booleans(),
)
def test_comes_back(table: list[int], figures: tuple[int, int, int, int], runs_on: bool) -> None:
    """Broken: the guest would go on with other figures, and call its own pages damaged."""
    state = State(runs_on, *figures, "sparse", np.array(table, np.uint32))
    found = unpack(pack(state), len(table))
    assert (found.table == state.table).all()
    for name in ("runs_on", "counter", "hot", "rate", "seed", "pattern"):
        assert getattr(found, name) == getattr(state, name)


def test_grows_little_with_the_guest() -> None:
    """Broken: the guest would stand still for longer, the more RAM it has."""
    small, large = (
        pack(State(True, 0, 0, 0, 0, "text", np.ones(n, np.uint32))) for n in (1, 1 << 19)
    )
    assert len(large) < len(small) + 4096


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "device state of 0 bytes"),
        (pack(STATE)[:56], "damaged"),
        (pack(STATE)[:-1], "damaged"),
        (b"\x09" + pack(STATE)[1:], "version 9"),
        (pack(STATE)[:48] + b"\xff" * 8 + pack(STATE)[56:], "pattern 1844"),
        (pack(STATE)[:56] + b"no frame", "damaged"),
        (pack(STATE)[:56] + zstandard.compress(bytes(1 << 20)), "does not fit a guest of 4 pages"),
        (pack(STATE)[:56] + UNSIZED, "does not fit a guest of 4 pages"),
        (pack(STATE) + b"\0", "damaged"),
    ],
)
def test_damage_is_refused(data: bytes, says: str) -> None:
    """Broken: a traceback, a table that was guessed, or memory without limit."""
    with pytest.raises(GuestError, match=says):
        unpack(data, 4)
