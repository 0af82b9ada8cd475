"""The error that every operation on a guest raises."""

from __future__ import annotations


class GuestError(Exception):
    """The guest cannot do that; one line."""
