"""Keep the migration parameters under QEMU's names, with types, defaults and ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..transport import settings
from ..transport.settings import Choice, Flag, Number
from . import extensions
from .arguments import Argument, Type, boolean, choice, integer, string, unsigned
from .errors import QmpError

MAX_BANDWIDTH = 32 << 20
"""Bandwidth limit of a service, in bytes per second, until a client sets another one."""

_size = unsigned(64, "uint64")
_u8 = unsigned(8, "uint8_t")


@dataclass(frozen=True)
class Parameter:
    """One parameter, in the range of `number` if it is a number with an effect here.

    A `fixed` parameter has no effect here, so it keeps its default.
    """

    name: str
    type: Type
    default: Any
    number: Number[int] | None = None
    fixed: bool = False

    def check(self, value: Any) -> None:
        """Raise QmpError if the parameter cannot have this value."""
        if self.fixed and value != self.default:
            raise QmpError(f"Parameter '{self.name}' has no effect here and cannot be changed")
        if self.number is not None and not self.number.accepts(value):
            raise QmpError(f"Parameter '{self.name}' expects {self.number.expects}")


def _number(number: Number[int], type_: Type) -> Parameter:
    return Parameter(number.name, type_, number.default, number)


def _choice(setting: Choice[Any]) -> Parameter:
    return Parameter(setting.name, choice(setting.words), setting.default.value)


def _flag(setting: Flag) -> Parameter:
    return Parameter(setting.name, boolean, setting.default)


def _fixed(name: str, type_: Type, default: Any) -> Parameter:
    return Parameter(name, type_, default, fixed=True)


PARAMETERS = {
    parameter.name: parameter
    for parameter in (
        _number(settings.ANNOUNCE_INITIAL, _size),
        _number(settings.ANNOUNCE_MAX, _size),
        _number(settings.ANNOUNCE_ROUNDS, _size),
        _number(settings.ANNOUNCE_STEP, _size),
        _number(settings.THROTTLE_TRIGGER_THRESHOLD, _u8),
        _number(settings.CPU_THROTTLE_INITIAL, _u8),
        _number(settings.CPU_THROTTLE_INCREMENT, _u8),
        _number(settings.MAX_CPU_THROTTLE, _u8),
        replace(_number(settings.MAX_BANDWIDTH, _size), default=MAX_BANDWIDTH),
        _number(settings.AVAIL_SWITCHOVER_BANDWIDTH, _size),
        _number(settings.DOWNTIME_LIMIT, _size),
        _number(settings.XBZRLE_CACHE_SIZE, _size),
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
        _number(settings.MULTIFD_CHANNELS, _u8),
        _choice(settings.MULTIFD_COMPRESSION),
        _number(settings.MULTIFD_ZLIB_LEVEL, _u8),
        _number(settings.MULTIFD_ZSTD_LEVEL, _u8),
        _choice(settings.ZERO_PAGE_DETECTION),
        _flag(settings.DIRECT_IO),
        _fixed("max-postcopy-bandwidth", _size, 0),
        Parameter(extensions.COMPRESS, extensions.compress, settings.COMPRESS.default),
        Parameter(extensions.ON_STALL, extensions.on_stall, settings.ON_STALL.default.value),
        Parameter(extensions.TRACKER, extensions.tracker, settings.TRACKER.default.value),
        Parameter(extensions.WORKERS, extensions.workers, extensions.AUTO),
    )
}
"""The parameters of QEMU 7.2 by name, and of later ones `avail-switchover-bandwidth` (8.2),
`zero-page-detection` (9.0) and `direct-io` (9.1); then vmferry's own.

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
            most = settings.MAX_CPU_THROTTLE.most
            expects = f"an integer in the range of cpu-throttle-initial to {most}"
            raise QmpError(f"Parameter 'max-cpu-throttle' expects {expects}")
        size = values["xbzrle-cache-size"]
        if "xbzrle-cache-size" in wanted and (size < page_size or size & (size - 1)):
            expects = "a power of two no less than the target page size"
            raise QmpError(f"Parameter 'xbzrle-cache-size' expects {expects}")
        self._values = values

    def as_qmp(self) -> dict[str, Any]:
        """Return all parameters as `query-migrate-parameters` lays them out."""
        return dict(self._values)
