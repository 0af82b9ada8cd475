"""Check device state that is kept in memory against its limit."""

from __future__ import annotations

from ..errors import StreamError


def check_device_state(size: int, limit: int | None, offset: int) -> None:
    """Raise StreamError at `offset` if `size` bytes are more than `limit`; None is no limit."""
    if limit is not None and size > limit:
        message = f"more than {limit} bytes of device state (--max-device-state)"
        raise StreamError(message, offset=offset)
