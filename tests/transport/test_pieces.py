"""Pieces of memory that a system call takes or fills in part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from vmferry.transport.pieces import drop_front


@given(data=st.lists(st.binary(), max_size=8), part=st.floats(0, 1))
def test_what_is_left_is_the_rest(data: list[bytes], part: float) -> None:
    """Broken: after a short write, bytes would be sent twice, or not at all."""
    whole = b"".join(data)
    count = int(len(whole) * part)
    pieces = [memoryview(piece) for piece in data]
    drop_front(pieces, count)
    assert b"".join(pieces) == whole[count:]
