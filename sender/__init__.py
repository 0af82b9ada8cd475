"""Run the source side of a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.lazy import exported

if TYPE_CHECKING:
    from ..transport.settings import OnStall
    from .coordinator import Sender
    from .errors import UnconfirmedError
    from .figures import Figures
    from .parameters import SendParameters
    from .throttle import ThrottleParameters

__all__ = [
    "Figures",
    "OnStall",
    "SendParameters",
    "Sender",
    "ThrottleParameters",
    "UnconfirmedError",
]

__getattr__ = exported(
    __name__,
    {
        "coordinator": "Sender",
        "errors": "UnconfirmedError",
        "figures": "Figures",
        "parameters": "OnStall SendParameters",
        "throttle": "ThrottleParameters",
    },
)
