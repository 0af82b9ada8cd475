"""The figures of runs, and their medians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from .cases import Case


@dataclass(frozen=True)
class Run:
    """The figures of one migration, in seconds.

    `seconds` and `cpu` (CPU time of both ends without that of the guest) count from the end of the
    setup; `setup` and `setup_cpu` are those of the setup. `transferred` is the number of bytes on
    the wire, `written` what the guest wrote in bytes a second.
    """

    seconds: float
    downtime: float = 0.0
    cpu: float = 0.0
    setup: float = 0.0
    setup_cpu: float = 0.0
    transferred: int = 0
    written: float = 0.0

    def and_of(self, cpu: float, setup: float, setup_cpu: float) -> Run:
        """Return the figures of a source together with these of its destination."""
        return replace(
            self,
            cpu=self.cpu + cpu,
            setup=self.setup + setup,
            setup_cpu=self.setup_cpu + setup_cpu,
        )


@dataclass(frozen=True)
class Beyond:
    """The most memory in bytes that each end had beyond the guest's."""

    source: int
    destination: int


@dataclass(frozen=True)
class Result:
    """The medians over all runs of one program in one case.

    `beyond` is None if it was not measured.
    """

    case: Case
    program: str
    runs: Sequence[Run]
    beyond: Beyond | None = None

    def _median(self, name: str) -> float:
        return float(median(getattr(run, name) for run in self.runs))

    @property
    def throughput(self) -> float:
        """Return GiB of guest RAM per second."""
        return self.case.gib / self._median("seconds")

    @property
    def downtime(self) -> float:
        """Return the time in seconds for which the guest stood still."""
        return self._median("downtime")

    @property
    def cpu(self) -> float:
        """Return the CPU seconds of both ends for a GiB of guest RAM."""
        return self._median("cpu") / self.case.gib

    @property
    def setup(self) -> float:
        """Return the seconds of the setup."""
        return self._median("setup")

    @property
    def transferred(self) -> float:
        """Return the bytes on the wire."""
        return self._median("transferred")

    @property
    def written(self) -> float:
        """Return the bytes that the guest wrote in a second."""
        return self._median("written")

    def as_json(self) -> dict[str, Any]:
        """Return case, medians and single runs; sizes in bytes, times in seconds."""
        case = self.case
        return {
            "size": case.size,
            "writes": "still" if case.writes is None else case.writes,
            "content": case.content,
            "destination": case.destination,
            "variant": case.variant.name,
            "program": self.program,
            "throughput": self.throughput,
            "downtime": self.downtime,
            "cpu": self.cpu,
            "setup": self.setup,
            "setup-cpu": self._median("setup_cpu"),
            "transferred": self.transferred,
            "written": self.written,
            "beyond": None if self.beyond is None else asdict(self.beyond),
            "runs": [asdict(run) for run in self.runs],
        }


@dataclass(frozen=True)
class Report:
    """All results of a benchmark.

    `first_byte` has the seconds from the start of a command to its first byte on the wire, by what
    was started.
    """

    results: Sequence[Result]
    first_byte: dict[str, float]

    def other(self, result: Result, program: str) -> Result | None:
        """Return the result of another program in the same case, or None."""
        found = (its for its in self.results if (its.case, its.program) == (result.case, program))
        return next(found, None)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "results": [result.as_json() for result in self.results],
            "first-byte": self.first_byte,
        }
