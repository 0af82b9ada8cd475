"""Give memory back between two migrations: a relay runs for months."""

from __future__ import annotations

import asyncio
import ctypes
import gc


async def give_back() -> None:
    """Give the memory of sessions that have ended back to the system.

    A session, its channels and their tasks know each other, so they go when the collector runs,
    and that counts objects, not megabytes. What the allocator of the C library then has free in
    pieces, it keeps unless told.
    """
    # The loop holds what has woken the caller, and so how the session's tasks ended, for this turn.
    await asyncio.sleep(0)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
