"""Measures one migration from one QEMU, under TCG, to another."""

from __future__ import annotations

import asyncio
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any

import psutil
from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from ....transport.shared import SharedFd
from .arrival import wait_first_byte
from .cases import BenchError, Case
from .firmware import LOW, PAGE_SIZE, Beats, firmware, read_beats
from .memory import Memory
from .results import Run
from .sampling import Sampler

TIMEOUT = 120.0
"""The longest time in seconds that a start or a migration may take."""
_BLOCK = "pc.ram"


class Qemu:
    """A QEMU that uses existing memory for its RAM, and has all of it mapped if it shall.

    `code` is the path of its firmware. Raises BenchError if it does not start.
    """

    def __init__(
        self, command: str, memory: SharedFd, size: int, mapped: bool, code: str, *options: str
    ) -> None:
        fd = memory.fileno()
        prealloc = "on" if mapped else "off"
        backend = f"memory-backend-file,id={_BLOCK},size={size},share=on,prealloc={prealloc}"
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = psutil.Popen(
                [
                    *shlex.split(command),
                    *("-accel", "tcg", "-display", "none", "-nodefaults"),
                    *("-machine", f"pc,memory-backend={_BLOCK}", "-m", f"{size >> 20}M"),
                    *("-bios", code),
                    *("-object", f"{backend},mem-path=/proc/self/fd/{fd}"),
                    *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
                    *("-mon", "chardev=qmp,mode=control"),
                    *options,
                ],
                pass_fds=[fd, theirs.fileno()],
            )
        self._memory = memory
        self._qmp = QEMUMonitorProtocol(ours)
        try:
            self._qmp.connect()
            self._processors = {its["thread-id"] for its in self.ask("query-cpus-fast")}
        except QMPError as error:
            self.close()
            raise BenchError(f"{command}: {error}") from error

    def ask(self, name: str, **arguments: Any) -> Any:
        """Execute a QMP command and return its answer. Raises BenchError."""
        try:
            return self._qmp.cmd(name, **arguments)
        except QMPError as error:
            raise BenchError(f"QEMU: {name}: {error}") from error

    def spent(self) -> float:
        """Return the CPU seconds so far, without those of the guest's processors."""
        times = self.process.cpu_times()
        guest = [its for its in self.process.threads() if its.id in self._processors]
        # Of threads that have ended, only the process knows.
        ours = times.user + times.system - sum(its.user_time + its.system_time for its in guest)
        return float(ours)

    def beats(self) -> Beats:
        """Return what the guest has counted."""
        with self._memory.map(LOW) as low:
            return read_beats(low[:LOW])

    def wait_running(self) -> None:
        """Wait until the guest writes. Raises BenchError."""
        deadline = time.monotonic() + TIMEOUT
        while self.beats().beats < 2:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise BenchError("QEMU's guest does not run")
            time.sleep(0.01)

    def prepare(self, capabilities: set[str], parameters: dict[str, Any]) -> None:
        """Set what both ends of a migration need."""
        wanted = [{"capability": name, "state": True} for name in {*capabilities, "events"}]
        self.ask("migrate-set-capabilities", capabilities=wanted)
        self.ask("migrate-set-parameters", **parameters)

    def wait_migrated(self) -> dict[str, Any]:
        """Return the figures of the completed migration. Raises BenchError if it fails."""
        try:
            while True:
                event = self._qmp.pull_event(wait=TIMEOUT) or {}
                status = event.get("data", {}).get("status")
                if event.get("event") == "MIGRATION" and status in ("completed", "failed"):
                    break
        except (asyncio.TimeoutError, QMPError) as error:
            raise BenchError(f"QEMU's migration did not complete: {error!r}") from error
        figures: dict[str, Any] = self.ask("query-migrate")
        if figures.get("status") != "completed":
            raise BenchError(f"QEMU's migration did not complete: {figures}")
        while figures.get("total-time", 1) == 0:
            # The times of a source are set a moment after its state.
            time.sleep(0.01)
            figures = self.ask("query-migrate")
        return figures

    def close(self) -> None:
        """Kill the process and close its QMP connection."""
        self.process.kill()
        self.process.wait()
        self._qmp.close()


@contextmanager
def _made(case: Case) -> Iterator[tuple[Memory, str]]:
    """Make the guest's memory, and a file with its firmware, for a while. Raises BenchError."""
    with (
        closing(Memory.create(case)) as memory,
        tempfile.NamedTemporaryFile(prefix="vmferry-bench-") as file,
    ):
        file.write(firmware(case.hot, case.writes or 0))
        file.flush()
        yield memory, file.name


def run_qemu(command: str, case: Case, sampler: Sampler | None = None) -> Run:
    """Run one migration; with a sampler, watch the memory of both ends. Raises BenchError."""
    with ExitStack() as held:
        memory, image = held.enter_context(_made(case))
        source = held.enter_context(closing(_source(command, case, memory, image)))
        destination = held.enter_context(closing(_destination(command, case, memory, image)))
        if case.live:
            source.wait_running()
        run = _migrate(source, destination, case, sampler)
        memory.check()
    return run


def _source(command: str, case: Case, memory: Memory, code: str) -> Qemu:
    # A guest that wrote its memory has it mapped.
    mapped = case.content != "untouched"
    options = () if case.live else ("-S",)
    return Qemu(command, memory.source, case.size, mapped, code, *options)


def _destination(command: str, case: Case, memory: Memory, code: str) -> Qemu:
    mapped, options = case.destination == "warm", ("-S", "-incoming", "defer")
    return Qemu(command, memory.destination, case.size, mapped, code, *options)


def _migrate(source: Qemu, destination: Qemu, case: Case, sampler: Sampler | None) -> Run:
    needed = case.variant.of_qemu(case.max_bandwidth)
    assert needed is not None
    for end in (source, destination):
        end.prepare(*needed)
    destination.ask("migrate-incoming", uri="tcp:127.0.0.1:0")
    address = destination.ask("query-migrate")["socket-address"][0]
    pids = (source.process.pid, destination.process.pid)
    with nullcontext() if sampler is None else sampler.watch(*pids):
        written, begun = source.beats().written, time.monotonic()
        spent = source.spent() + destination.spent()
        source.ask("migrate", uri=f"tcp:127.0.0.1:{address['port']}")
        figures = source.wait_migrated()
        rate = (source.beats().written - written) * PAGE_SIZE / (time.monotonic() - begun)
        destination.wait_migrated()
        spent = source.spent() + destination.spent() - spent
    setup = figures["setup-time"] / 1000
    return Run(
        seconds=figures["total-time"] / 1000 - setup,
        downtime=figures["downtime"] / 1000,
        cpu=spent,
        setup=setup,
        transferred=figures["ram"]["transferred"],
        written=rate,
    )


def first_byte_of_qemu(command: str, case: Case) -> float:
    """Return the seconds from the command `migrate` to the first byte on the wire."""
    with ExitStack() as held:
        memory, image = held.enter_context(_made(case))
        source = held.enter_context(closing(_source(command, case, memory, image)))
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        source.wait_running()
        started = time.monotonic()
        source.ask("migrate", uri=f"tcp:127.0.0.1:{server.getsockname()[1]}")
        return wait_first_byte(server, TIMEOUT) - started
