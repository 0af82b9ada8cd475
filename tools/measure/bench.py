"""Implements `vmferry bench`: compares vmferry with QEMU, in alternation over loopback TCP.

Both migrate a paused guest whose pages exist on both sides. Throughput is computed as in QEMU:
guest RAM divided by the time from the end of setup to completion. CPU time is that of all processes
of both ends in that time. Setup, in which vmferry starts its processes, is reported separately. If
vmferry compresses, so does QEMU if it can: `zstd` is multifd-compression over two channels there.
"""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, TypeAlias

import psutil
from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol
from rich.console import Console
from rich.table import Table

from ...protocol.states import MigrationStatus
from ...receiver.coordinator import Receiver
from ...sender.coordinator import Sender
from ...sender.parameters import SendParameters
from ...transport.process import send_message, start_child, stop_children
from ...transport.shared import SharedFd
from ..console.text import echo
from .bench_guest import StillGuest
from .bench_memory import BLOCK, BenchError, Memory
from .children import ChildError, next_message

QEMU_CHANNELS = 2
TIMEOUT = 120.0


@dataclass(frozen=True)
class Run:
    """The figures of one migration, in seconds.

    `seconds` and `cpu` (CPU time of both ends) count from the end of setup; `setup` and `setup_cpu`
    are those of the setup. `transferred` is the number of bytes on the wire.
    """

    seconds: float
    cpu: float
    setup: float
    setup_cpu: float
    transferred: int


@dataclass(frozen=True)
class Variant:
    """The options of a migration: `compress` is that of SendParameters, `max_bandwidth` is in bytes
    per second (0: no limit).
    """

    compress: str = "none"
    max_bandwidth: int = 0

    def qemu_parameters(self) -> dict[str, Any] | None:
        """Return QEMU's equivalent migration parameters, or None if it has none."""
        parameters: dict[str, Any] = {"max-bandwidth": self.max_bandwidth or 1 << 40}
        method, _, level = self.compress.partition(":")
        if method == "zstd":
            parameters |= {
                "multifd-channels": QEMU_CHANNELS,
                "multifd-compression": "zstd",
                "multifd-zstd-level": int(level or 1),
            }
        return None if method == "adaptive" else parameters


def _spent() -> float:
    """Return the CPU seconds of this process and of all its descendants, dead or alive."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [me, *me.children(recursive=True)])


def _send(connection: Connection, uri: str, memory: SharedFd, size: int, variant: Variant) -> None:
    started, spent = time.monotonic(), [_spent()]
    parameters = SendParameters(max_bandwidth=variant.max_bandwidth, compress=variant.compress)
    sender = Sender(StillGuest(memory.fileno(), size), uri, parameters)
    sender.states.add_listener(
        lambda _, new: spent.append(_spent()) if new is MigrationStatus.ACTIVE else None
    )
    figures = sender.run()
    whole = time.monotonic() - started
    seconds = (figures.total_time - figures.setup_time) / 1000
    cpu, setup_cpu = _spent() - spent[1], spent[1] - spent[0]
    run = Run(seconds, cpu, whole - seconds, setup_cpu, figures.transferred)
    send_message(connection, run)


def _receive(connection: Connection, memory: SharedFd, size: int) -> None:
    started, spent = time.monotonic(), [_spent()]
    guest = StillGuest(memory.fileno(), size)

    def listening(uri: str) -> None:
        spent.append(_spent())
        send_message(connection, (uri, time.monotonic() - started))

    Receiver(guest, "tcp:127.0.0.1:0").run(on_listening=listening)
    send_message(connection, (spent[1] - spent[0], _spent() - spent[1]))


def run_vmferry(memory: Memory, variant: Variant) -> Run:
    """Run one migration from one process group to another. Raises BenchError."""
    receiver = start_child(
        "vmferry-bench", _receive, (memory.destination, memory.size), parent=True
    )
    try:
        uri, waited = next_message(receiver)
        arguments = (uri, memory.source, memory.size, variant)
        sender = start_child("vmferry-bench", _send, arguments, parent=True)
        try:
            run: Run = next_message(sender)
            setup_cpu, cpu = next_message(receiver)
        finally:
            stop_children([sender])
    except ChildError as error:
        raise BenchError(str(error)) from None
    finally:
        stop_children([receiver])
    setup, setup_cpu = run.setup + waited, run.setup_cpu + setup_cpu
    return Run(run.seconds, run.cpu + cpu, setup, setup_cpu, run.transferred)


class Qemu:
    """A paused QEMU under TCG that uses the memory of one end. Raises BenchError if it does not
    start.
    """

    def __init__(self, command: str, memory: Memory, fd: int, *options: str) -> None:
        size = memory.size
        backend = f"memory-backend-file,id={BLOCK},size={size},share=on"
        if memory.content != "untouched":
            backend += ",prealloc=on"
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = psutil.Popen(
                [
                    *shlex.split(command),
                    *("-accel", "tcg", "-S", "-display", "none", "-nodefaults"),
                    *("-machine", f"pc,memory-backend={BLOCK}", "-m", f"{size >> 20}M"),
                    *("-object", f"{backend},mem-path=/proc/self/fd/{fd}"),
                    *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
                    *("-mon", "chardev=qmp,mode=control"),
                    *options,
                ],
                pass_fds=[fd, theirs.fileno()],
            )
        self._qmp = QEMUMonitorProtocol(ours)
        try:
            self._qmp.connect()
        except QMPError as error:
            self.close()
            raise BenchError(f"{command}: {error}") from error

    def ask(self, name: str, **arguments: Any) -> Any:
        """Execute a QMP command and return its answer."""
        return self._qmp.cmd(name, **arguments)

    def spent(self) -> float:
        """Return the CPU seconds so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def wait_migrated(self) -> dict[str, Any]:
        """Return the figures of the completed migration. Raises BenchError if it fails or takes too
        long.

        TIMEOUT is the limit in seconds.
        """
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            figures: dict[str, Any] = self.ask("query-migrate")
            if figures.get("status") == "completed":
                return figures
            if figures.get("status") == "failed":
                break
            time.sleep(0.01)
        raise BenchError(f"QEMU's migration did not complete: {figures}")

    def close(self) -> None:
        """Kill the process and close its QMP connection."""
        self.process.kill()
        self.process.wait()
        self._qmp.close()


def run_qemu(command: str, memory: Memory, parameters: dict[str, Any]) -> Run:
    """Run one migration from one QEMU to another. Raises BenchError."""
    incoming = ("-incoming", "defer")
    with (
        closing(Qemu(command, memory, memory.source.fileno())) as source,
        closing(Qemu(command, memory, memory.destination.fileno(), *incoming)) as destination,
    ):
        for end in (source, destination):
            on = "multifd-compression" in parameters
            multifd = {"capability": "multifd", "state": on}
            end.ask("migrate-set-capabilities", capabilities=[multifd])
            end.ask("migrate-set-parameters", **parameters)
        destination.ask("migrate-incoming", uri="tcp:127.0.0.1:0")
        address = destination.ask("query-migrate")["socket-address"][0]
        spent = source.spent() + destination.spent()
        source.ask("migrate", uri=f"tcp:127.0.0.1:{address['port']}")
        figures = source.wait_migrated()
        destination.wait_migrated()
        spent = source.spent() + destination.spent() - spent
    setup = figures["setup-time"] / 1000
    transferred = figures["ram"]["transferred"]
    return Run(figures["total-time"] / 1000 - setup, spent, setup, 0.0, transferred)


@dataclass(frozen=True)
class Result:
    """The medians over all runs of one program with one content.

    `throughput` is in GiB/s, `cpu` in CPU seconds per GiB of guest RAM, `setup` and `setup_cpu` in
    seconds. `compress` is that of SendParameters; `ratio` is bytes of RAM per byte on the wire.
    """

    content: str
    program: str
    compress: str
    throughput: float
    cpu: float
    setup: float
    setup_cpu: float
    ratio: float

    @classmethod
    def of(cls, content: str, program: str, compress: str, gib: float, runs: list[Run]) -> Result:
        """Return the medians over these runs."""
        return cls(
            content,
            program,
            compress,
            gib / median(run.seconds for run in runs),
            median(run.cpu for run in runs) / gib,
            median(run.setup for run in runs),
            median(run.setup_cpu for run in runs),
            gib * (1 << 30) / median(run.transferred for run in runs),
        )


Program: TypeAlias = tuple[str, str]
"""The name of a program, and its compression."""


def _programs(
    qemu: str | None, variants: Iterable[Variant]
) -> dict[Program, Callable[[Memory], Run]]:
    programs: dict[Program, Callable[[Memory], Run]] = {}
    for variant in variants:
        programs["vmferry", variant.compress] = partial(run_vmferry, variant=variant)
        parameters = variant.qemu_parameters()
        if qemu is not None and parameters is not None:
            run = partial(run_qemu, qemu, parameters=parameters)
            programs["qemu", variant.compress] = run
    return programs


def bench(
    size: int,
    contents: tuple[str, ...],
    runs: int,
    qemu: str | None,
    variants: tuple[Variant, ...],
    tell: Callable[[str], None],
) -> list[Result]:
    """Run all benchmarks, and call `tell` with a line after each run. Raises BenchError."""
    if size % (1 << 20):
        raise BenchError(f"{size} bytes of RAM are not a multiple of 1 MiB")
    programs = _programs(qemu, variants)
    results, gib = [], size / (1 << 30)
    for content in contents:
        memory = Memory.create(content, size)
        done: dict[Program, list[Run]] = {program: [] for program in programs}
        for number in range(runs):
            for program, run in programs.items():
                memory.prepare_run()
                done[program].append(run(memory))
                memory.check()
                speed = gib / done[program][-1].seconds
                name = " ".join(part for part in program if part != "none")
                tell(f"{content} {number + 1}/{runs} {name}: {speed:.2f} GiB/s")
        memory.close()
        results += [Result.of(content, *program, gib, done[program]) for program in programs]
    return results


def print_results(results: list[Result]) -> None:
    """Print the results as a table, and their ratios to QEMU's."""
    columns = ("content", "program", "compress", "GiB/s", "CPU s/GiB", "ratio")
    table = Table(*columns, "setup s", "setup CPU s", box=None)
    for result in results:
        figures = (result.throughput, result.cpu, result.ratio, result.setup, result.setup_cpu)
        names = (result.content, result.program, result.compress)
        table.add_row(*names, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)
    qemu = {(its.content, its.compress): its for its in results if its.program == "qemu"}
    for ours in (result for result in results if result.program == "vmferry"):
        theirs = qemu.get((ours.content, ours.compress))
        if theirs is not None:
            speed, cpu = ours.throughput / theirs.throughput, ours.cpu / theirs.cpu
            name = ours.content if ours.compress == "none" else f"{ours.content}, {ours.compress}"
            echo(f"{name}: {speed:.2f} x QEMU's throughput, {cpu:.2f} x its CPU")
