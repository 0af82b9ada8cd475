"""What stands behind RAM: held back until the description confirms where device sections end.

A device's state may hold what looks like its footer and a next section. The search is misled then;
the description at the very end still tells where sections end. Without footers it alone does.
"""

from __future__ import annotations

import json
from typing import Any

from . import devices, events
from .description import DescriptionError, described_lengths
from .errors import StreamError
from .writer import StreamWriter


class Ending:
    """The events held back, and every device section of the stream."""

    def __init__(self) -> None:
        self.held: list[events.Event] = []
        self.size = 0
        """Bytes of the payloads held."""
        self._devices: list[events.DeviceSection] = []

    def note(self, event: events.DeviceSection) -> None:
        """A device section was read, held back or not."""
        self._devices.append(event)

    def hold(self, event: events.Event) -> list[events.Event]:
        """Keep an event; nothing is told yet."""
        self.held.append(event)
        if isinstance(event, events.DeviceSection):
            self.size += len(event.payload)
        return []

    def release(self) -> list[events.Event]:
        """The events held, as they are."""
        found, self.held, self.size = self.held, [], 0
        return found

    def raw(self) -> bytes:
        """All held, as on the wire."""
        return b"".join(map(StreamWriter().write, self.held))

    def confirm(self, description: events.Description) -> list[events.Event]:
        """The events held, with sections as long as described. Raises StreamError."""
        raw = b"".join(StreamWriter().write(event) for event in self.held[:-1])
        try:
            lengths = described_lengths(description.json)
        except DescriptionError as error:
            message = f"a device is described without sense: {error}"
            raise StreamError(message, offset=description.offset) from None
        settled = devices.settle(self.held, self._devices, lengths, raw)
        self.release()
        return [*settled, description]


def read_description(text: bytes, offset: int, page_size: int) -> events.Description:
    """The description, whose pages have to be as they were read. Raises StreamError."""
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"the description is not JSON: {error}"
        raise StreamError(message, offset=offset) from None
    if not isinstance(description, dict):
        raise StreamError("the description is not a JSON object", offset=offset)
    check_page_size(description, offset, page_size)
    return events.Description(offset, text, description)


def check_page_size(description: dict[str, Any], offset: int, page_size: int) -> None:
    """Raises StreamError where the description at `offset` tells of other pages."""
    described = description.get("page_size", page_size)
    if described != page_size:
        message = f"pages have {described} bytes by the description, were read as {page_size}"
        raise StreamError(message, offset=offset)
