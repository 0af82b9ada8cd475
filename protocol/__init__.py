"""Declare, read and write the bytes of QEMU's migration stream, without I/O."""

from __future__ import annotations

from .lazy import exported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .errors import CutError, ParameterError, StreamError, UnsupportedError, VmferryError
    from .reader import StreamReader
    from .states import MigrationStatus
    from .writer import StreamWriter

__all__ = [
    "CutError",
    "MigrationStatus",
    "ParameterError",
    "StreamError",
    "StreamReader",
    "StreamWriter",
    "UnsupportedError",
    "VmferryError",
]

__getattr__ = exported(
    __name__,
    {
        "errors": "CutError ParameterError StreamError UnsupportedError VmferryError",
        "reader": "StreamReader",
        "states": "MigrationStatus",
        "writer": "StreamWriter",
    },
)
