"""Run the destination side of a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.lazy import exported

if TYPE_CHECKING:
    from .coordinator import ReceiveParameters, Receiver
    from .errors import KeptError
    from .figures import Figures

__all__ = [
    "Figures",
    "KeptError",
    "ReceiveParameters",
    "Receiver",
]

__getattr__ = exported(
    __name__,
    {
        "coordinator": "ReceiveParameters Receiver",
        "errors": "KeptError",
        "figures": "Figures",
    },
)
