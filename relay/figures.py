"""The figures of one migration through a relay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Figures:
    """Counts of one session; sizes in bytes."""

    channels: int = 0
    """Local connections so far."""
    connections: int = 0
    """Connections of the link at this moment."""
    cuts: int = 0
    """Number of times that a connection of the link broke."""
    read: int = 0
    """Bytes read from local connections and sent."""
    written: int = 0
    """Bytes that arrived for local connections."""
    sent: int = 0
    """Bytes sent over the link."""
    received: int = 0
    """Bytes that arrived over the link."""
    repeated: int = 0
    """Bytes sent over the link again, as a connection broke."""
    level: int = 0
    """Level of zstd of what is sent now; 0: not compressed."""

    @property
    def transferred(self) -> int:
        """Return the bytes that the link moved, in both directions."""
        return self.sent + self.received

    @property
    def ratio(self) -> float:
        """Return the bytes of local connections per byte on the link; 0 before any."""
        moved = self.transferred
        return (self.read + self.written) / moved if moved else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name, with hyphens."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}
