"""Keep the descriptors that clients passed and named, for `fd:NAME`."""

from __future__ import annotations

import os

from ..transport.uri import Fd, UriError, parse_uri
from .errors import QmpError

MAX_DESCRIPTORS = 64
"""Largest number of descriptors that may wait to be used."""


class Descriptors:
    """The named descriptors; each is closed when it is used up, replaced or removed."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def add(self, name: str, fd: int) -> None:
        """Store `fd` under a name, in place of any other. Raises QmpError, and then closes `fd`."""
        wrong = None
        if not name or name[0].isdigit():
            wrong = "Parameter 'fdname' expects a name not starting with a digit"
        elif name not in self._fds and len(self._fds) >= MAX_DESCRIPTORS:
            wrong = f"more than {MAX_DESCRIPTORS} file descriptors"
        if wrong is not None:
            os.close(fd)
            raise QmpError(wrong)
        if name in self._fds:
            os.close(self._fds.pop(name))
        self._fds[name] = fd

    def remove(self, name: str) -> None:
        """Close the descriptor of this name. Raises QmpError."""
        if name not in self._fds:
            raise QmpError(f"File descriptor named '{name}' not found")
        os.close(self._fds.pop(name))

    def resolve(self, uri: str) -> tuple[str, int | None]:
        """Return the URI with the descriptor's number for its name, and the descriptor to close.

        The descriptor is the caller's to close; it is None if there is nothing to close. A number
        in the URI stays: it names a descriptor that this process inherited. Raises UriError.
        """
        scheme, _, name = uri.partition(":")
        if scheme == "fd" and name in self._fds:
            fd = self._fds.pop(name)
            return f"fd:{fd}", fd
        if scheme == "fd" and not _inherited(uri):
            raise UriError(f"File descriptor named '{name}' has not been found")
        return uri, None

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}


def _inherited(uri: str) -> bool:
    """Return whether the URI has the number of an inherited descriptor.

    Descriptors that this process opened itself are not inheritable.
    """
    try:
        parsed = parse_uri(uri)
        return isinstance(parsed, Fd) and os.get_inheritable(parsed.number)
    except (UriError, OSError, OverflowError):
        return False
