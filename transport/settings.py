"""Declare every setting of a migration once: its name, default, range and unit, and what it does.

`SendParameters` and `ReceiveParameters`, the options of the command line and the parameters of QMP
are made from this table, so that each of them refuses the same values. A setting has the name that
it has in QMP and, after two hyphens, on the command line. Source of names, defaults and ranges:
QEMU's QMP reference, `MigrationParameters`; other settings are vmferry's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from ..protocol.errors import ParameterError

MAX_SIZE = (1 << 63) - 1
"""Largest size in bytes, and largest rate in bytes per second, that can be set."""


Default = TypeVar("Default", int, None)
Member = TypeVar("Member", bound=Enum)


class Unit(Enum):
    """The unit of a number; the value ends a sentence about the number."""

    COUNT = ""
    BYTES = " bytes"
    RATE = " bytes per second"
    MILLISECONDS = " milliseconds"
    PERCENT = " percent"


@dataclass(frozen=True, kw_only=True)
class Number(Generic[Default]):
    """A setting that is a whole number from `least` to `most`.

    `help` describes it to users. With the default None, something else decides, as `help` says.
    """

    name: str
    default: Default
    least: int = 0
    most: int = MAX_SIZE
    unit: Unit = Unit.COUNT
    help: str = ""

    @property
    def expects(self) -> str:
        """Return what a value must be, to complete "expects" or "is not"."""
        return f"an integer in the range of {self.least} to {self.most}{self.unit.value}"

    def accepts(self, value: object) -> bool:
        """Return whether the setting can have this value."""
        integer = isinstance(value, int) and not isinstance(value, bool)
        return integer and self.least <= value <= self.most  # type: ignore[operator]

    def check(self, value: object) -> None:
        """Raise ParameterError unless the setting can have this value; None is not checked."""
        if value is not None and not self.accepts(value):
            name = self.name.replace("-", "_")
            raise ParameterError(f"{name}: {value!r} is not {self.expects}")


@dataclass(frozen=True, kw_only=True)
class Choice(Generic[Member]):
    """A setting that is one of the words which `default`, a member of an enumeration, belongs to.

    `help` describes it to users.
    """

    name: str
    default: Member
    help: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """Return the words to choose from."""
        return tuple(member.value for member in type(self.default))


@dataclass(frozen=True, kw_only=True)
class Text:
    """A setting that is text; what it sets also checks it. `help` describes it to users."""

    name: str
    default: str
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A setting that is on or off. `help` describes it to users."""

    name: str
    default: bool = False
    help: str = ""


Setting = Number[Any] | Choice[Any] | Text | Flag


class OnStall(Enum):
    """The reaction to rounds that no longer shrink."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    SWITCHOVER = "switchover"


class TrackerKind(Enum):
    """The ways to find dirty pages, best first; AUTO takes the first that the guest can have."""

    AUTO = "auto"
    USERFAULTFD = "userfaultfd"
    """The kernel marks pages as the guest writes them."""
    SOFT_DIRTY = "soft-dirty"
    """The kernel sets a bit of each page that the guest's process writes; the guest is held for
    some milliseconds before each round.
    """
    DIGESTS = "digests"
    """All pages are read, and compared with digests of what was sent."""


class MultifdCompression(Enum):
    """The compression of pages on a channel of multifd."""

    NONE = "none"
    ZLIB = "zlib"
    ZSTD = "zstd"


class Disks(Enum):
    """The part of the guest's disks that is sent."""

    NONE = "none"
    """No disks: the destination has access to the same images."""
    ALL = "all"
    """Everything on the disks."""
    TOP = "top"
    """Everything above the backing images, which the destination has already."""


class ZeroPageDetection(Enum):
    """The way in which multifd finds and sends zero pages."""

    AUTO = "auto"
    """The version of the guest's machine decides between the two below, as in QEMU."""
    NONE = "none"
    """Zero pages are not looked for, and are sent like all others."""
    LEGACY = "legacy"
    """Zero pages are records of the main channel."""
    MULTIFD = "multifd"
    """Zero pages are listed in packets; QEMU before 9.0 ignores that, and keeps the old pages."""


def _percentage(name: str, default: int, text: str, most: int = 99) -> Number[int]:
    return Number(name=name, default=default, least=1, most=most, unit=Unit.PERCENT, help=text)


MAX_BANDWIDTH = Number(
    name="max-bandwidth",
    default=0,
    unit=Unit.RATE,
    help="largest number of bytes to send per second; 0: no limit",
)
AVAIL_SWITCHOVER_BANDWIDTH = Number(
    name="avail-switchover-bandwidth",
    default=0,
    unit=Unit.RATE,
    help="number of bytes per second that the link bears once the guest is stopped, where"
    " --max-bandwidth does not count any more; 0: as measured",
)
DOWNTIME_LIMIT = Number(
    name="downtime-limit",
    default=300,
    most=2_000_000,
    unit=Unit.MILLISECONDS,
    help="longest time for which the guest may be stopped, in milliseconds",
)
WORKERS = Number(
    name="workers",
    default=None,
    most=64,
    help="number of processes that scan or apply memory, besides the one that moves bytes; 0: that"
    " one does it itself (default: as many as help on this machine)",
)
XBZRLE_CACHE_SIZE = Number(
    name="xbzrle-cache-size",
    default=64 << 20,
    least=1,
    unit=Unit.BYTES,
    help="memory for copies of sent pages; needs --xbzrle (default: 64M, or all RAM if less)",
)
COMPRESS = Text(
    name="compress",
    default="none",
    help="none, zstd[:LEVEL], or adaptive: as hard as suits the link and the processors",
)
CPU_THROTTLE_INITIAL = _percentage(
    "cpu-throttle-initial",
    20,
    "part of the time that --auto-converge stops the guest for at first",
)
CPU_THROTTLE_INCREMENT = _percentage(
    "cpu-throttle-increment", 10, "how much more of the time each further step stops the guest"
)
MAX_CPU_THROTTLE = _percentage(
    "max-cpu-throttle", 99, "largest part of the time that --auto-converge stops the guest for"
)
THROTTLE_TRIGGER_THRESHOLD = _percentage(
    "throttle-trigger-threshold",
    50,
    "the guest outruns the link if it dirties this part of what is sent meanwhile",
    100,
)
ON_STALL = Choice(
    name="on-stall",
    default=OnStall.CONTINUE,
    help="what to do when rounds no longer shrink",
)
TRACKER = Choice(
    name="tracker",
    default=TrackerKind.AUTO,
    help="how to find the pages that the guest wrote: userfaultfd has the kernel mark them,"
    " soft-dirty reads bits that it sets for any process, digests"
    " reads all memory in every round; auto takes the first that is possible",
)
MULTIFD_CHANNELS = Number(
    name="multifd-channels",
    default=2,
    least=1,
    most=255,
    help="number of connections that memory travels over, besides the main one; both ends need the"
    " same number",
)
MULTIFD_COMPRESSION = Choice(
    name="multifd-compression",
    default=MultifdCompression.NONE,
    help="how memory is compressed on the connections of multifd; both ends need the same",
)
MULTIFD_ZLIB_LEVEL = Number(
    name="multifd-zlib-level",
    default=1,
    most=9,
    help="from 1 (fast) to 9 (small); 0 compresses nothing",
)
MULTIFD_ZSTD_LEVEL = Number(
    name="multifd-zstd-level",
    default=1,
    most=20,
    help="from 1 (fast) to 20 (small)",
)
ZERO_PAGE_DETECTION = Choice(
    name="zero-page-detection",
    default=ZeroPageDetection.AUTO,
    help="where multifd sends zero pages: in packets (multifd), on the main connection (legacy, for"
    " QEMU before 9.0), or like all others (none); auto: as the guest's machine version asks for",
)
DISKS = Choice(
    name="disks",
    default=Disks.NONE,
    help="what to send of the guest's disks: none, because the destination has access to them; all;"
    " top: what lies above their backing images, which the destination has",
)
DIRECT_IO = Flag(
    name="direct-io",
    help="write and read the pages of a mapped-ram file past the page cache (O_DIRECT)",
)
MAX_DEVICE_STATE = Number(
    name="max-device-state",
    default=4 << 30,
    unit=Unit.BYTES,
    help="refuse a guest with more device state; beyond some MiB it is kept in a temporary file",
)
ANNOUNCE_INITIAL = Number(name="announce-initial", default=50, most=100_000, unit=Unit.MILLISECONDS)
ANNOUNCE_MAX = Number(name="announce-max", default=550, most=100_000, unit=Unit.MILLISECONDS)
ANNOUNCE_ROUNDS = Number(name="announce-rounds", default=5, most=1000)
ANNOUNCE_STEP = Number(
    name="announce-step", default=100, least=1, most=10_000, unit=Unit.MILLISECONDS
)
