"""Control migrations and report on them: the service, its QMP commands and events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.lazy import exported

if TYPE_CHECKING:
    from .announce import AnnounceError
    from .errors import QmpError
    from .server import Listening, Server, ServerError
    from .service import Service, ServiceError

__all__ = [
    "AnnounceError",
    "Listening",
    "QmpError",
    "Server",
    "ServerError",
    "Service",
    "ServiceError",
]

__getattr__ = exported(
    __name__,
    {
        "announce": "AnnounceError",
        "errors": "QmpError",
        "server": "Listening Server ServerError",
        "service": "Service ServiceError",
    },
)
