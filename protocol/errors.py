"""Define the root of all errors, and those for streams that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class VmferryError(Exception):
    """The root of all errors that vmferry reports; the message is one line for a user."""


class StreamError(VmferryError, ValueError):
    """A stream that is damaged, incomplete, or not a migration stream.

    `offset`: bytes from the start of the stream; `section`: name of the section at that offset.
    `found`: the events read from the same piece of the stream before that offset.
    """

    def __init__(self, message: str, *, offset: int, section: str | None = None) -> None:
        super().__init__(message, offset, section)
        self.found: Sequence[Any] = ()
        self.message = message
        self.offset = offset
        self.section = section

    def __str__(self) -> str:
        where = f"offset {self.offset:#x}"
        if self.section is not None:
            where += f" (section {self.section!r})"
        return f"{where}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.offset, self.section)


class CutError(StreamError):
    """A stream that ends too early, with no fault in the part that was read."""


class UnsupportedError(StreamError):
    """A stream that is valid in QEMU's format but uses a feature that vmferry does not read."""


def _rebuild(
    kind: type[StreamError], message: str, offset: int, section: str | None
) -> StreamError:
    """Build the error from its parts when it is unpickled in another process."""
    return kind(message, offset=offset, section=section)


class ParameterError(VmferryError, ValueError):
    """A parameter, or the description of a guest, has a value that cannot be used."""
