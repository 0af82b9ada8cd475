"""The cases of a benchmark, and the ways in which a guest is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....guest.synthetic_memory import PAGE_SIZE
from ....protocol.errors import VmferryError
from ....sender.parameters import SendParameters
from ....transport.settings import MultifdCompression

CONTENTS = ("random", "half-zero", "text", "zero", "untouched")
"""Contents of a guest's RAM, by name.

`random`: bytes that do not compress. `half-zero`: the same, but half of the pages are zero. `text`:
words of letters. `zero`: zero pages that exist. `untouched`: pages that do not exist (still guests
only).
"""
DESTINATIONS = ("cold", "warm")
"""States of the destination's memory: allocated only as the guest arrives, or before that."""

METHODS = ("plain", "xbzrle", "zstd", "adaptive", "multifd", "multifd-zstd")
CHANNELS = 2
"""The channels of multifd beside the main one."""

NO_LIMIT = 1 << 40
"""A bandwidth limit in bytes per second for QEMU, whose own default would be a limit."""
MAX_HOT = 64 << 20
"""The largest default of a hot set in bytes; smaller guests have an eighth of their RAM."""
_MIB = 1 << 20
_SMALLEST = 32 * _MIB
"""The least RAM in bytes that holds QEMU's guest and its hot set."""


class BenchError(VmferryError):
    """Raised if a run fails or has a wrong result; the message is one line."""


@dataclass(frozen=True)
class Variant:
    """A way of sending, one of METHODS; `zstd` and `multifd-zstd` may end with `:LEVEL`.

    `zstd` and `adaptive` compress the link, `multifd` and `multifd-zstd` send over CHANNELS.
    """

    name: str = "plain"

    def __post_init__(self) -> None:
        """Check the name. Raises BenchError."""
        _, colon, level = self.name.partition(":")
        leveled = self.method.endswith("zstd") and level.isdecimal()
        if self.method not in METHODS or (colon and not leveled):
            raise BenchError(f"{self.name!r} is none of {', '.join(METHODS)}")

    @property
    def method(self) -> str:
        """Return the name without a level."""
        return self.name.partition(":")[0]

    @property
    def level(self) -> int:
        """Return the level of compression."""
        return int(self.name.partition(":")[2] or 1)

    @property
    def channels(self) -> int | None:
        """Return the number of vmferry's channels beside the main one; None: no multifd."""
        return CHANNELS if self.method.startswith("multifd") else None

    def parameters(self, max_bandwidth: int) -> SendParameters:
        """Return the parameters of vmferry's sender for this variant."""
        compression = MultifdCompression.NONE
        if self.method == "multifd-zstd":
            compression = MultifdCompression.ZSTD
        return SendParameters(
            max_bandwidth=max_bandwidth,
            compress=self.name if self.method in ("zstd", "adaptive") else "none",
            xbzrle=self.method == "xbzrle",
            multifd_channels=self.channels,
            multifd_compression=compression,
            multifd_zstd_level=self.level,
        )

    def of_qemu(self, max_bandwidth: int) -> tuple[set[str], dict[str, Any]] | None:
        """Return what QEMU needs for the same: capabilities and parameters; None if it cannot.

        QEMU does not compress the link; what is closest is multifd with compression.
        """
        parameters: dict[str, Any] = {"max-bandwidth": max_bandwidth or NO_LIMIT}
        if self.method == "adaptive":
            return None
        if self.method == "plain":
            return set(), parameters
        if self.method == "xbzrle":
            return {"xbzrle"}, parameters
        parameters["multifd-channels"] = CHANNELS
        if self.method.endswith("zstd"):
            parameters["multifd-compression"] = "zstd"
            parameters["multifd-zstd-level"] = self.level
        return {"multifd"}, parameters


@dataclass(frozen=True)
class Case:
    """One case of the benchmark: a guest, what it writes, and how it is sent.

    `size` of its RAM and the `hot` set in bytes; `writes` in bytes a second, or None for a guest
    that is paused. `max_bandwidth` in bytes a second is 0 for no limit. `content` is one of
    CONTENTS, `destination` one of DESTINATIONS. Raises BenchError if there is no such case.
    """

    size: int
    content: str
    writes: int | None
    destination: str
    variant: Variant
    hot: int
    max_bandwidth: int = 0

    def __post_init__(self) -> None:
        """Check that QEMU and vmferry can both have this guest."""
        if self.size % _MIB:
            raise BenchError(f"{self.size} bytes of RAM are not a multiple of 1 MiB")
        if self.size < _SMALLEST:
            raise BenchError(f"{self.size} bytes of RAM are less than {_SMALLEST >> 20} MiB")
        if self.live and self.content == "untouched":
            raise BenchError("a guest that runs has touched its memory: untouched is for still")
        if self.hot < PAGE_SIZE or self.hot > self.size - _SMALLEST // 2:
            raise BenchError(f"a hot set of {self.hot} bytes does not fit {self.size} bytes of RAM")

    @property
    def live(self) -> bool:
        """Return whether the guest runs."""
        return self.writes is not None

    @property
    def gib(self) -> float:
        """Return the size of RAM in GiB."""
        return self.size / (1 << 30)

    @property
    def pattern(self) -> str:
        """Return the pattern of the synthetic guest that writes as this one."""
        return "edited" if self.content == "text" else "sparse"

    @property
    def zero(self) -> float:
        """Return the part of RAM that starts as zero."""
        return {"half-zero": 0.5, "zero": 1.0}.get(self.content, 0.0)

    def __str__(self) -> str:
        state = "still" if self.writes is None else f"{self.writes / _MIB:g} MiB/s"
        return f"{self.gib:g} GiB, {state}, {self.content}, {self.destination}, {self.variant.name}"


def default_hot(size: int) -> int:
    """Return the size in bytes of the hot set of a guest of `size` bytes of RAM."""
    return min(MAX_HOT, size // 8)
