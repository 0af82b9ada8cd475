"""Define what vmferry adds to QMP: parameters, members of `query-migrate`, and an event.

Their names have a prefix that QEMU leaves to others. Source of the form of the names: QEMU's
documentation, docs/devel/qapi-code-gen, on downstream extensions (`__RFQDN_name`); vmferry has no
domain, so its own name is used.
"""

from __future__ import annotations

from typing import Any

from ..sender.stall import Remedy, Stall
from ..transport import settings
from ..transport.compression import CompressionError, parse_compression
from .arguments import Type, choice, string, unsigned
from .errors import QmpError

PREFIX = "__vmferry_"
COMPRESS = PREFIX + settings.COMPRESS.name
ON_STALL = PREFIX + settings.ON_STALL.name
TRACKER = PREFIX + settings.TRACKER.name
WORKERS = PREFIX + settings.WORKERS.name
STALL_EVENT = f"{PREFIX}MIGRATION_STALL"
AUTO = "auto"
"""Value of the parameter for workers that lets the machine decide their number."""

on_stall: Type = choice(settings.ON_STALL.words)
tracker: Type = choice(settings.TRACKER.words)
_OWN_NAMES = {Remedy.COMPRESS: COMPRESS, Remedy.ON_STALL: ON_STALL}
"""Parameters of stock QEMU have the same names as on the command line."""
_OWN_FIGURES = (
    "remaining-time",
    "forecast",
    "stall",
    "compression",
    "cpu-throttle-highest",
    "tracker",
)


def compress(name: str, value: Any) -> str:
    """Return `value` if it is a method that `send --compress` takes. Raises QmpError."""
    try:
        parse_compression(string(name, value))
    except CompressionError as error:
        raise QmpError(f"Parameter '{name}': {error}") from error
    return str(value)


def workers(name: str, value: Any) -> int | str:
    """Return `value` if it is a number of workers, or AUTO. Raises QmpError."""
    if value == AUTO:
        return AUTO
    count: int = unsigned(8, "a number of workers, or 'auto'")(name, value)
    if not settings.WORKERS.accepts(count):
        raise QmpError(f"Parameter '{name}' expects {settings.WORKERS.expects}, or 'auto'")
    return count


def stall_as_qmp(stall: Stall) -> dict[str, Any]:
    """Return reason and advice, in which parameters have their names in QMP."""
    return stall.explain(lambda remedy: _OWN_NAMES.get(remedy, remedy.value)).as_json()


def under_own_names(figures: dict[str, Any], stall: Stall | None) -> dict[str, Any]:
    """Return the figures with those that QEMU lacks under vmferry's prefix; skip unknown ones."""
    answer = {name: value for name, value in figures.items() if name not in _OWN_FIGURES}
    for name in _OWN_FIGURES:
        known = _known(figures.get(name))
        if known not in (None, {}):
            answer[PREFIX + name] = known
    if stall is not None:
        answer[f"{PREFIX}stall"] = stall_as_qmp(stall)
    return answer


def _known(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if inner is not None}
