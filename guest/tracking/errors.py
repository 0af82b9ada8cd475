"""Define the error of a tracker that cannot be had."""

from __future__ import annotations

from ..errors import GuestError


class TrackingError(GuestError):
    """Writes to the guest's memory cannot be tracked this way; the message is the reason."""
