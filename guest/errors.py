"""Define the error that every operation on a guest raises."""

from __future__ import annotations


class GuestError(Exception):
    """An operation on a guest failed; the message is one line."""
