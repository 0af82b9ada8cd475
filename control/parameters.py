"""Keep the migration parameters under QEMU's names, with types, defaults and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..sender.parameters import OnStall
from ..sender.tracking import TrackerKind
from . import extensions
from .arguments import Argument, Type, boolean, integer, string, unsigned
from .errors import QmpError

MAX_DOWNTIME = 2_000_000
"""Largest downtime limit, in milliseconds."""
MAX_SIZE = (1 << 63) - 1
"""Largest bandwidth limit that `migrate_set_speed` can set, in bytes per second."""

_size = unsigned(64, "uint64")
_u8 = unsigned(8, "uint8_t")


@dataclass(frozen=True)
class Parameter:
    """One parameter, with values from `least` to `most` if `expects` describes that range.

    `expects` completes the error message. A `fixed` parameter has no effect here, so it keeps its
    default.
    """

    name: str
    type: Type
    default: Any
    least: int = 0
    most: int = (1 << 64) - 1
    expects: str = ""
    fixed: bool = False

    def check(self, value: Any) -> None:
        """Raise QmpError if the parameter cannot have this value."""
        if self.fixed and value != self.default:
            raise QmpError(f"Parameter '{self.name}' has no effect here and cannot be changed")
        if self.expects and not self.least <= value <= self.most:
            raise QmpError(f"Parameter '{self.name}' expects {self.expects}")


def _percentage(name: str, default: int, most: int = 99) -> Parameter:
    expects = f"an integer in the range of 1 to {most}"
    return Parameter(name, _u8, default, 1, most, expects)


def _announce(name: str, default: int, least: int, most: int) -> Parameter:
    return Parameter(name, _size, default, least, most, f"a value between 0 and {most}")


def _fixed(name: str, type_: Type, default: Any) -> Parameter:
    return Parameter(name, type_, default, fixed=True)


PARAMETERS = {
    parameter.name: parameter
    for parameter in (
        _announce("announce-initial", 50, 0, 100_000),
        _announce("announce-max", 550, 0, 100_000),
        _announce("announce-rounds", 5, 0, 1000),
        _announce("announce-step", 100, 1, 10_000),
        _percentage("throttle-trigger-threshold", 50, 100),
        _percentage("cpu-throttle-initial", 20),
        _percentage("cpu-throttle-increment", 10),
        _percentage("max-cpu-throttle", 99),
        Parameter("max-bandwidth", _size, 32 << 20),
        Parameter(
            "downtime-limit",
            unsigned(64, "uint64"),
            300,
            0,
            MAX_DOWNTIME,
            "an integer in the range of 0 to 2000000 ms",
        ),
        Parameter("xbzrle-cache-size", _size, 64 << 20),
        _fixed("compress-level", _u8, 1),
        _fixed("compress-threads", _u8, 8),
        _fixed("compress-wait-thread", boolean, True),
        _fixed("decompress-threads", _u8, 2),
        _fixed("cpu-throttle-tailslow", boolean, False),
        _fixed("tls-creds", string, ""),
        _fixed("tls-hostname", string, ""),
        _fixed("tls-authz", string, ""),
        _fixed("x-checkpoint-delay", integer, 20_000),
        _fixed("block-incremental", boolean, False),
        _fixed("multifd-channels", _u8, 2),
        _fixed("multifd-compression", string, "none"),
        _fixed("multifd-zlib-level", _u8, 1),
        _fixed("multifd-zstd-level", _u8, 1),
        _fixed("max-postcopy-bandwidth", _size, 0),
        Parameter(extensions.COMPRESS, extensions.compress, "none"),
        Parameter(extensions.ON_STALL, extensions.on_stall, OnStall.CONTINUE.value),
        Parameter(extensions.TRACKER, extensions.tracker, TrackerKind.AUTO.value),
        Parameter(extensions.WORKERS, extensions.workers, extensions.AUTO),
    )
}
"""The parameters of QEMU 7.2 by name, followed by vmferry's own.

The defaults are those of QEMU, except `max-bandwidth`.
"""

ARGUMENTS = tuple(
    Argument(parameter.name, parameter.type, default=None) for parameter in PARAMETERS.values()
)
"""The arguments of `migrate-set-parameters`; None means not given."""


class Parameters:
    """The present values of all parameters."""

    def __init__(self) -> None:
        self._values = {name: parameter.default for name, parameter in PARAMETERS.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def set(self, wanted: dict[str, Any], page_size: int) -> None:
        """Change these parameters: all of them, or none if QmpError is raised.

        `page_size` is that of the guest, the smallest size of an XBZRLE cache.
        """
        for name, value in wanted.items():
            PARAMETERS[name].check(value)
        values = self._values | wanted
        if values["max-cpu-throttle"] < values["cpu-throttle-initial"]:
            expects = "an integer in the range of cpu-throttle-initial to 99"
            raise QmpError(f"Parameter 'max-cpu-throttle' expects {expects}")
        size = values["xbzrle-cache-size"]
        if "xbzrle-cache-size" in wanted and (size < page_size or size & (size - 1)):
            expects = "a power of two no less than the target page size"
            raise QmpError(f"Parameter 'xbzrle-cache-size' expects {expects}")
        self._values = values

    def as_qmp(self) -> dict[str, Any]:
        """Return all parameters as `query-migrate-parameters` lays them out."""
        return dict(self._values)
