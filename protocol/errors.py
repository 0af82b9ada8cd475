"""What the reader raises: one line that says what is wrong and where in the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class StreamError(ValueError):
    """The stream is damaged, incomplete, or not a migration stream.

    `offset`: bytes from the start of the stream; `section`: name of the section it lies in.
    `found`: the events that the reader took from the same piece of the stream before that place.
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
    """The stream ends before it is whole; what came of it was sound."""


class UnsupportedError(StreamError):
    """Valid in QEMU's format, but not read by vmferry."""


def _rebuild(
    kind: type[StreamError], message: str, offset: int, section: str | None
) -> StreamError:
    """Make the error again, in another process."""
    return kind(message, offset=offset, section=section)
