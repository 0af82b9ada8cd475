"""Parse the options of a synthetic guest: `SIZE[,option=value...]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import GuestError
from .sizes import parse_size
from .synthetic_memory import PAGE_SIZE, PATTERNS


@dataclass(frozen=True)
class Options:
    """The options of a synthetic guest: sizes in bytes, rates in bytes per second.

    `size` is 0 for an incoming guest, which brings its size, its hot set and its dirty rate. `hot`
    is the part of RAM, in bytes, that is written over and over. `zero` is the fraction of RAM that
    starts as zero. `heartbeat` is a file that gets "pid counter running" every 100 ms. `orphan` is
    the time in seconds that the guest lives on when its controller dies. `pattern` is one of
    PATTERNS in `synthetic_memory`. `disks` has the paths of the images of its disks (option `disk`,
    once for each), which it writes with `disk_rate`. `prealloc` has all of memory made
    beforehand: that of an incoming guest whose size is given, before it arrives. `pid` is the
    process of a guest that a failed migration left paused, and that is to be started.
    """

    size: int = 0
    dirty_rate: int = 0
    hot: int = 0
    zero: float = 0.25
    seed: int = 1
    heartbeat: str = ""
    orphan: float = 30.0
    pattern: str = PATTERNS[0]
    prealloc: bool = False
    pid: int = 0
    disks: tuple[str, ...] = ()
    disk_rate: int = 0


def _percent(text: str) -> float:
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not between 0% and 100%")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise ValueError(f"{text!r} is not a number below 2^63")
    return int(text)


def _pattern(text: str) -> str:
    if text not in PATTERNS:
        raise ValueError(f"{text!r} is none of {', '.join(PATTERNS)}")
    return text


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"{text!r} is neither on nor off")
    return text == "on"


def _pid(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 22:
        raise ValueError(f"{text!r} is not the number of a process")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(f"{text!r} is not a number of seconds")
    return value


def _parsers(size: int) -> dict[str, Callable[[str], Any]]:
    return {
        "dirty-rate": parse_size,
        "hot": lambda text: int(size * _percent(text)) if "%" in text else parse_size(text),
        "zero": _percent,
        "seed": _seed,
        "heartbeat": str,
        "orphan": _seconds,
        "pattern": _pattern,
        "prealloc": _switch,
        "pid": _pid,
        "disk": str,
        "disk-rate": parse_size,
    }


def parse_options(text: str) -> Options:
    """Return the options in `text`. Raises GuestError that names a wrong option and lists all."""
    items = text.split(",") if text else []
    try:
        size = parse_size(items.pop(0)) if items and "=" not in items[0] else 0
    except ValueError as error:
        raise GuestError(f"synthetic: {error}") from error
    if size % PAGE_SIZE:
        raise GuestError(f"synthetic: size {size} is not a multiple of {PAGE_SIZE}")
    parsers = _parsers(size)
    values: dict[str, Any] = {"size": size, "hot": size // 10}
    for item in items:
        name, _, value = item.partition("=")
        if name not in parsers:
            raise GuestError(f"synthetic: unknown option {name!r}; known are {', '.join(parsers)}")
        try:
            parsed = parsers[name](value)
            if name == "disk":
                values["disks"] = (*values.get("disks", ()), parsed)
            else:
                values[name.replace("-", "_")] = parsed
        except ValueError as error:
            raise GuestError(f"synthetic: option {name}: {error}") from error
    return Options(**values)
