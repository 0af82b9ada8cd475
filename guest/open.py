"""Open the guest that a user names: `dir:PATH`, `synthetic:SIZE[,option=value...]`."""

from __future__ import annotations

from collections.abc import Callable

from .base import Guest
from .directory import DirectoryGuest
from .errors import GuestError
from .synthetic import SyntheticGuest

_KINDS: dict[str, Callable[[str, bool], Guest]] = {
    "dir": lambda path, _: DirectoryGuest(path),
    "synthetic": SyntheticGuest.parse,
}


def open_guest(text: str, *, incoming: bool = False) -> Guest:
    """Open the guest that `text` names. Raises GuestError that says what is wrong.

    An `incoming` guest is to arrive: it does not run, and a size is that of the guest to come.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS:
        known = " ".join(f"{name}:" for name in _KINDS)
        raise GuestError(f"unknown guest {text!r}: it begins with none of {known}")
    return _KINDS[kind](rest, incoming)
