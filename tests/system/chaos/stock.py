"""Run chaos with a real QEMU at one end: `python -m tests.system.chaos --qemu source|destination`.

The other end is a vmferry command with a `dir:` guest. Which rules hold there are QEMU's own:

- A stock source with a return path gives its guest up when it reads SHUT 0, and then closes in an
  orderly way; a source that did not read it lets its guest run on. So a destination of vmferry lets
  the guest run (a `dir:` guest gets its name) on an orderly close only.
  *The rules' fault*: where the link itself closes in an orderly way, in place of the source, while
  the answer is held up or lost, the destination cannot know, and both have the guest.
- A stock source without a return path gives its guest up when all was sent.
  *The rules' fault*: what happens on the link or at the destination behind the end of the stream
  costs the guest; a `migrate_cancel` or a broken link at the source behind it makes two.
- A stock destination that has loaded the guest runs it at once, whatever becomes of its SHUT 0.
  *The rules' fault*: where the SHUT 0 is lost, the guest runs at the destination, and the source
  keeps its own (which is a `dir:` guest here and does not run).
- A QEMU that is killed loses the guest that it holds.

*vmferry's fault* is everything else: a guest that is neither at the source nor in the folder, also
incomplete, after the stock source read SHUT 0; a folder that holds a guest, whole, beside a source
that runs; RAM that is not the source's; `send` that succeeds and no guest runs at the destination;
and what is a fault in any run: processes, files and sockets that are left, tracebacks, ends that
are not over.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.qemu.machine import COUNTER, qemu_command

from .ends import Destination, End, Source
from .plan import Cancel, Fault, Plan, Signal, make_plan
from .processes import Family
from .qmp import ask
from .watch import Beat, Heart, Watch

RAM = 32 << 20
STREAM = 700_000
"""Bytes of a stream in which something may happen; it is somewhat longer."""
UNEQUAL_PAGES = 40
"""Pages of a QEMU 7.2 under TCG that may change after it stopped: those that the guest writes."""
VERSIONS = ("7.2", "10")


def make_stock_plan(seed: int, number: int, side: str, *, long: bool) -> Plan:
    """Make the plan of a run with a QEMU at this side, from an ordinary one."""
    plan = make_plan(seed, number, long=long)
    version = VERSIONS[number % 2]
    source, destination = plan.source, plan.destination
    if side == "source":
        source = f"qemu-{version}"
    else:
        source, destination = "send", f"qemu-{version}"
    return_path = number // 2 % 3 > 0
    options = () if return_path else ("--no-return-path",)
    return replace(
        plan,
        source=source,
        destination=destination,
        guest="dir",
        unix=plan.unix and side == "source",
        size=RAM,
        options=options if source == "send" else (),
        receive_options=plan.receive_options if destination == "receive" else (),
        return_path=return_path,
        patient=False,
        deeds=tuple(_fitted(deed, side) for deed in plan.deeds),
    )


def _fitted(deed: Signal | Fault | Cancel, side: str) -> Signal | Fault | Cancel:
    """Return the deed as it can be done where one side is a QEMU."""
    mark = deed.trigger.mark
    if mark.startswith("byte "):
        trigger = replace(deed.trigger, mark=f"byte {int(mark.split()[1]) % STREAM}")
        deed = replace(deed, trigger=trigger)
    elif mark == "confirmed":
        deed = replace(deed, trigger=replace(deed.trigger, mark="shut"))
    if isinstance(deed, Signal):
        if deed.side == side:
            # A QEMU has one process; what ends it in an orderly way ends the guest.
            number = signal.SIGSTOP if deed.number is signal.SIGSTOP else signal.SIGKILL
            deed = replace(deed, role="command", number=number)
        elif deed.role == "guest":
            deed = replace(deed, role="transport")
    return deed


class SerialHeart(Heart):
    """The guest of a QEMU writes to its serial port; the file's last change is its last beat."""

    def look(self) -> Beat | None:
        """Look whether the file has grown."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        counter = 0 if self.last is None else self.last.counter
        if status.st_size <= counter:
            return None
        beat = self.last = Beat(status.st_mtime_ns / 1e9, 0, status.st_size, True)
        self.first_run = self.first_run or beat
        self.last_run = beat
        return beat


class _Qemu(End):
    """A QEMU with the guest of `tests.qemu.machine`."""

    def _start_qemu(self, *options: str) -> None:
        version = self.kind.partition("-")[2]
        program, environment = qemu_command(version)
        image = self.folder / "boot.img"
        image.write_bytes((COUNTER.ljust(510, b"\0") + b"\x55\xaa").ljust(1440 << 10, b"\0"))
        command = [
            *program,
            *("-accel", "tcg", "-display", "none", "-nodefaults", "-no-shutdown"),
            *("-machine", "pc-i440fx-7.2,memory-backend=m0"),
            *("-object", f"memory-backend-memfd,id=m0,size={RAM},share=on"),
            *("-drive", f"file={image},format=raw,id=boot,if=floppy"),
            *("-serial", f"file:{self.folder}/{self.side}.beat"),
            *("-qmp", f"unix:{self._qmp},server=on,wait=off"),
            *options,
        ]
        self._spawn(command, environment)

    def _set_return_path(self, on: bool) -> None:
        wanted = [{"capability": "return-path", "state": on}]
        ask(self._qmp, "migrate-set-capabilities", capabilities=wanted)

    @property
    def memory(self) -> Path | None:
        """Return the file of its RAM, if it is there."""
        if not self.serves or self._command is None:
            return None
        folder = Path(f"/proc/{self._command.pid}/fd")
        names = ((path, os.readlink(path)) for path in folder.iterdir())
        return next((path for path, name in names if "memory-backend" in name), None)


class StockSource(_Qemu, Source):
    """A QEMU that is told to migrate once its guest runs."""

    def start(self, uri: str) -> None:
        """Start it, to migrate there."""
        self._uri = uri
        self._start_qemu()

    def _ask(self) -> None:
        End._ask(self)
        serial = self.folder / "source.beat"
        if not self.migration and serial.exists() and serial.stat().st_size > 3:
            self._set_return_path(self._plan.return_path)
            ask(self._qmp, "migrate", uri=self._uri)


class StockDestination(_Qemu, Destination):
    """A QEMU that waits for a guest."""

    def start(self) -> None:
        """Start the destination."""
        self._start_qemu("-incoming", "defer")

    def _ask(self) -> None:
        End._ask(self)
        if not self.migration and not self._socket.exists():
            self._set_return_path(self._plan.return_path)
            ask(self._qmp, "migrate-incoming", uri=f"unix:{self._socket}")

    def address(self) -> str | tuple[str, int] | None:
        """Return where it listens, once it does."""
        return str(self._socket) if self._socket.exists() else None


def unequal(folder: Path, memory: Path) -> str:
    """Return how the guest's RAM in a folder differs from a QEMU's; empty if it does not."""
    document = json.loads((folder / "guest.json").read_text())
    files = {block["name"]: folder / "ram" / block["file"] for block in document["blocks"]}
    here = np.fromfile(files["m0"], np.uint8).reshape(-1, 4096)
    there = np.fromfile(memory, np.uint8).reshape(-1, 4096)
    count = int((here != there).any(axis=1).sum())
    return f"{count} pages differ from the source's" if count > UNEQUAL_PAGES else ""


def make_ends(
    plan: Plan, folder: Path, family: Family, orphan: float
) -> tuple[Source, Destination]:
    """Return both ends of a run, whatever they are."""
    source = StockSource if plan.source.startswith("qemu") else Source
    destination = StockDestination if plan.destination.startswith("qemu") else Destination
    return source(plan, folder, family, orphan), destination(plan, folder, family, orphan)


def make_watch(plan: Plan, folder: Path) -> Watch:
    """Return a watch of both guests."""
    watch = Watch(folder)
    if plan.source.startswith("qemu"):
        watch.source = SerialHeart(watch.source.path)
    if plan.destination.startswith("qemu"):
        watch.destination = SerialHeart(watch.destination.path)
    return watch


def save_guests(folder: Path) -> dict[str, Path]:
    """Make a guest at rest from each QEMU; returns their folders by kind of destination."""
    saved = {}
    for number, version in enumerate(VERSIONS):
        plan = replace(make_stock_plan(0, number, "source", long=False), deeds=(), unix=True)
        plan = replace(plan, return_path=True, destination="receive")
        where = folder / version
        (where / "tmp").mkdir(parents=True)
        family = Family(f"save.{os.getpid()}.{version}")
        source = StockSource(plan, where, family, 0)
        destination = Destination(plan, where, family, 0)
        destination.start()
        try:
            until = time.monotonic() + 60
            while destination.address() is None and time.monotonic() < until:
                time.sleep(0.05)
            source.start(f"unix:{destination.address()}")
            while not (source.over and destination.over) and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            for process in family.alive():
                process.kill(signal.SIGKILL)
            source.close()
            if destination.close():
                raise AssertionError(destination.said())
        saved[f"qemu-{version}"] = where / "some" / "where" / "guest"
    return saved
