"""Keep a list of pieces of memory that are written or filled one after another."""

from __future__ import annotations


def drop_front(pieces: list[memoryview], count: int) -> None:
    """Remove the first `count` bytes from the list; pieces that are used up leave it."""
    done = 0
    while done < len(pieces) and count >= len(pieces[done]):
        count -= len(pieces[done])
        done += 1
    del pieces[:done]
    if count:
        pieces[0] = pieces[0][count:]
