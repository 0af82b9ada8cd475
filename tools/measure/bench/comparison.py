"""Runs a benchmark: all programs in turns, so that what else the machine does hits each alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from ..children import ChildError
from .cases import BenchError, Case
from .first_byte import measure_first_byte
from .limit import measure_limit
from .memory import Memory
from .qemu import run_qemu
from .results import Report, Result, Run
from .sampling import Sampler
from .vmferry import run_vmferry

Tell = Callable[[str], None]
Program = Callable[[Case, "Sampler | None"], Run]


def compare(cases: Sequence[Case], runs: int, qemu: str | None, tell: Tell) -> Report:
    """Measure all cases, and call `tell` with a line after each run. Raises BenchError."""
    results = [result for case in cases for result in _measure(case, runs, qemu, tell)]
    return Report(results, measure_first_byte(runs, qemu))


def _programs(case: Case, qemu: str | None) -> dict[str, Program]:
    programs: dict[str, Program] = {"vmferry": run_vmferry}
    if qemu is not None and case.variant.of_qemu(case.max_bandwidth) is not None:
        programs["qemu"] = lambda case, sampler: run_qemu(qemu, case, sampler)
    if case.content != "untouched":
        programs["limit"] = lambda case, _: _limit(case)
    return programs


def _limit(case: Case) -> Run:
    try:
        # What the bytes are makes no difference, and zeros are there at once.
        with closing(Memory.create(replace(case, content="zero"))) as memory:
            return measure_limit(memory)
    except ChildError as error:
        raise BenchError(str(error)) from None


def _measure(case: Case, runs: int, qemu: str | None, tell: Tell) -> list[Result]:
    programs = _programs(case, qemu)
    done: dict[str, list[Run]] = {name: [] for name in programs}
    for number in range(runs):
        for name, program in programs.items():
            run = program(case, None)
            done[name].append(run)
            down = f", down {run.downtime * 1000:.0f} ms" if run.downtime and case.live else ""
            speed = f"{case.gib / run.seconds:.2f} GiB/s"
            tell(f"{case}, {number + 1}/{runs} {name}: {speed}{down}")
    results = []
    for name, program in programs.items():
        beyond = None
        if name != "limit":
            sampler = Sampler()
            program(case, sampler)
            beyond = sampler.beyond
        results.append(Result(case, name, tuple(done[name]), beyond))
    return results
