"""Find the last word of a destination among what it says on the return path."""

from __future__ import annotations

from ...protocol.return_path import MessageHeader, ReturnPathReader, Shut


def before_shut(data: bytes) -> tuple[int, bool]:
    """Return how many bytes are whole messages, up to SHUT, and whether SHUT is the last of them.

    Raises StreamError for bytes that are no message.
    """
    length, head = 0, MessageHeader.sizeof()
    while len(data) - length >= head:
        end = length + head + MessageHeader.parse(data[length : length + head]).length
        found = ReturnPathReader().feed(data[length:end])
        if not found:
            break
        length = end
        if isinstance(found[0], Shut):
            return length, True
    return length, False
