"""Measures one migration of vmferry, from one process group to another."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ....transport.process import Child, send_message, start_child, stop_children
from ..children import ChildError, next_message
from .cases import BenchError, Case
from .ends import Arrived, Live, Still, receive, send
from .memory import SEED, Memory
from .results import Run
from .sampling import Sampler


def run_vmferry(case: Case, sampler: Sampler | None = None) -> Run:
    """Run one migration; with a sampler, watch the memory of both ends. Raises BenchError."""
    if case.live:
        return _run(case, *_live(case), sampler)
    memory = Memory.create(case)
    try:
        ends = (Still(memory.source, case.size), Still(memory.destination, case.size))
        run = _run(case, *ends, sampler)
        memory.check()
    finally:
        memory.close()
    return run


def _live(case: Case) -> tuple[Live, Live]:
    """Return a synthetic guest, and the one that is to arrive."""
    options = {
        "dirty-rate": case.writes,
        "hot": case.hot,
        "zero": case.zero,
        "seed": SEED,
        "pattern": case.pattern,
        # Zero pages exist, as in a guest that had its memory at its start.
        "prealloc": "on",
    }
    text = ",".join([str(case.size), *(f"{name}={value}" for name, value in options.items())])
    warm = ",prealloc=on" if case.destination == "warm" else ""
    return Live(text, incoming=False), Live(f"{case.size}{warm}", incoming=True)


def _run(
    case: Case, source: Still | Live, destination: Still | Live, sampler: Sampler | None
) -> Run:
    to_receive = (destination, case.variant.channels)
    receiver = start_child("vmferry-bench", receive, to_receive, parent=True)
    try:
        uri, waited = next_message(receiver)
        arguments = (uri, source, case.variant.parameters(case.max_bandwidth))
        sender = start_child("vmferry-bench", send, arguments, parent=True)
        try:
            next_message(sender)
            with _watching(sampler, sender.pid, receiver.pid):
                _answer(sender)
                run: Run = next_message(sender)
                arrived: Arrived = next_message(receiver)
            for child in (sender, receiver):
                _answer(child)
            if next_message(sender) != next_message(receiver):
                raise BenchError(f"the memories differ: {case}")
        finally:
            stop_children([sender])
    except ChildError as error:
        raise BenchError(str(error)) from None
    finally:
        stop_children([receiver])
    return run.and_of(arrived.cpu, waited, arrived.setup_cpu)


def _answer(child: Child) -> None:
    """Let a child go on. Raises ChildError if it is dead."""
    try:
        send_message(child.connection, "go on")
    except OSError:
        raise ChildError(child.death()) from None


def _watching(
    sampler: Sampler | None, source: int, destination: int
) -> AbstractContextManager[object]:
    return nullcontext() if sampler is None else sampler.watch(source, destination)
