"""The command line tools, and what reads streams from files for them and for programs."""

from __future__ import annotations

from ..protocol.lazy import exported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .console.failure import CommandError
    from .sources.containers import open_stream
    from .sources.stream_events import How, read_events

__all__ = [
    "CommandError",
    "How",
    "open_stream",
    "read_events",
]

__getattr__ = exported(
    __name__,
    {
        "console.failure": "CommandError",
        "sources.containers": "open_stream",
        "sources.stream_events": "How read_events",
    },
)
