"""What a user may ask of an outgoing migration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .throttle import ThrottleParameters


class OnStall(Enum):
    """What to do when rounds no longer shrink."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    SWITCHOVER = "switchover"


@dataclass(frozen=True)
class SendParameters:
    """`max_bandwidth` in bytes a second (None: no limit), `downtime_limit` in seconds.

    `workers`: processes that scan and encode beside the transport process; 0: it does that itself;
    None: what the machine bears.
    `return_path`: ask the destination to answer, where the channel goes both ways.
    `xbzrle`: send pages as differences, from a cache of `xbzrle_cache_size` bytes (None: 64 MiB, or
    all RAM where that is less). `compress`: `none`, `zstd[:LEVEL]` or `adaptive`.
    `auto_converge`: slow the guest down so while it dirties RAM faster than is sent; None: never.
    `pause_before_switchover`: with the guest paused, wait for `Sender.proceed`.
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
