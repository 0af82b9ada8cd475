"""Hold the parameters of an outgoing migration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .throttle import ThrottleParameters


class OnStall(Enum):
    """The reaction to rounds that no longer shrink."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    SWITCHOVER = "switchover"


@dataclass(frozen=True)
class SendParameters:
    """The parameters of an outgoing migration.

    `max_bandwidth` is in bytes per second (None: no limit), `downtime_limit` in seconds. `workers`
    is the number of processes that scan and encode; with 0 the transport process does that itself,
    with None the machine decides. `return_path` asks the destination to answer, if the channel goes
    both ways. `xbzrle` sends pages as differences, from a cache of `xbzrle_cache_size` bytes (None:
    64 MiB, or all RAM if that is less). `compress` is `none`, `zstd[:LEVEL]` or `adaptive`.
    `auto_converge` throttles the guest while it dirties RAM faster than it is sent (None: never).
    `pause_before_switchover` waits for `Sender.proceed` once the guest is paused.
    """

    max_bandwidth: int | None = None
    downtime_limit: float = 0.3
    workers: int | None = None
    return_path: bool = True
    xbzrle: bool = False
    xbzrle_cache_size: int | None = None
    compress: str = "none"
    auto_converge: ThrottleParameters | None = None
    on_stall: OnStall = OnStall.CONTINUE
    pause_before_switchover: bool = False
