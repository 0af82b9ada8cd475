"""One run: two commands, a proxy between them, and what the plan does to all of them.

`perform` gives a Record of what was seen; `judge` says what is wrong with it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .ends import VMFERRY
from .plan import Deed, Fault, Plan, Signal
from .processes import Family, Process
from .proxy import Proxy
from .stock import make_ends, make_watch, unequal

ENDED_WITHIN = 5.0
"""Seconds from the last event until everything has ended."""
ALLOWANCE = 12.0
"""Further seconds that a run may take; more on a busy machine, as the record shows."""
ANSWER_WITHIN = 60.0
"""Seconds that a source waits for an answer."""
_LOOK = 0.03
_SCAN = 0.5
_LINGER = 1.2
"""Seconds that both guests are watched after everything has ended."""
_LISTENS_WITHIN = 60.0
_COMES_WITHIN = 3.0
"""Seconds that a signal waits for the process that it is for."""


@dataclass(frozen=True)
class Done:
    """A deed, when it was done, and to which process; `what` says it for a person."""

    time: float
    deed: Deed
    pid: int
    what: str


@dataclass
class Record:
    """Observations of a run; times are of time.monotonic, `settled` and beats of time.time."""

    plan: Plan
    folder: Path
    started: float = field(default_factory=time.monotonic)
    done: list[Done] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Length of the run in seconds."""
    two: str | None = None
    allowance: float = ALLOWANCE
    """Seconds that were allowed beside those of the rules."""
    ended_after: float = 0.0
    """Seconds from the last event until both ends were over and all that must end had ended."""
    left: list[str] = field(default_factory=list)
    """Processes that did not end in time."""
    hung: list[str] = field(default_factory=list)
    """Ends whose migration was not over in time."""
    began: bool = False
    """True if a guest ever ran."""
    runs: dict[str, bool] = field(default_factory=dict)
    """True if a guest of this side was seen to run after everything else had ended."""
    unequal: str = ""
    """Difference of RAM in the guest's folder to that of a stock source."""
    status: dict[str, int | None] = field(default_factory=dict)
    """The exit status of each command; None: it was still there (served)."""
    migration: dict[str, str] = field(default_factory=dict)
    """Last answer of a service on its migration."""
    kept: bool = False
    """True if the destination keeps the guest, complete and paused, to be taken up."""
    taken_up: str | None = None
    """Fault when the guest was taken up, empty if there was none; None if this was not tried."""
    stderr: dict[str, str] = field(default_factory=dict)
    link: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    @property
    def guest_folder(self) -> Path:
        """Return the folder of a `dir:` guest that arrives."""
        return self.folder / "some" / "where" / "guest"

    def to(self, side: str, *roles: str) -> list[Done]:
        """Return the signals that these processes of a side got."""
        return [
            done
            for done in self.done
            if isinstance(done.deed, Signal)
            and done.pid
            and done.deed.side == side
            and done.deed.role in roles
        ]


def busy() -> float:
    """Return how many times longer than alone a process takes here now."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Run:
    """One run under way: both ends, the link, and all their processes."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.record = Record(plan, folder)
        self._family = Family(f"{plan.seed}.{plan.number}.{id(self)}")
        self._watch = make_watch(plan, folder)
        self._starting = 0.0
        """Seconds that the destination took to listen, which tell how fast the machine is."""
        self._waiting: list[Deed] = list(plan.deeds)
        self._due: list[tuple[float, int, Deed | Process]] = []
        self._order = itertools.count()
        self._lock = threading.RLock()
        self._proxy: Proxy | None = None
        self._last = time.monotonic()
        self._dead_link = self._ended_outside = self._ended_by_term = False
        self._next_scan = 0.0
        # The guest that is left alone has to be there when the run is judged.
        orphan = (
            (30 if plan.patient else 150 * busy())
            + plan.stopped
            + (ANSWER_WITHIN + 30 if plan.dead_link and plan.long else 0)
        )
        self._source, self._destination = make_ends(plan, folder, self._family, orphan)

    # Deeds.

    def _fire(self, mark: str, before: bool = False) -> None:
        """Do what is to be done at a mark, now or later."""
        if (mark, before) == ("forward closed", True) and self.plan.source.startswith("qemu"):
            # An orderly close is the word of a stock source.
            self._fire("confirm", True)
            self._fire("confirm")
        now = time.monotonic()
        with self._lock:
            name = f"before {mark}" if before else mark
            self.record.marks.setdefault(name, now)
            self._trace(name)
            due = [
                deed
                for deed in self._waiting
                if (deed.trigger.mark, deed.trigger.before) == (mark, before)
            ]
            for deed in due:
                self._waiting.remove(deed)
                if deed.trigger.delay:
                    heapq.heappush(self._due, (now + deed.trigger.delay, next(self._order), deed))
        for deed in due:
            if not deed.trigger.delay:
                self._do(deed)
        if mark in ("forward closed", "back closed") and before:
            self._fire("closed")

    def _trace(self, what: str) -> None:
        self.record.trace.append(f"{time.monotonic() - self.record.started:7.3f} {what}")

    def _do(self, deed: Deed) -> None:
        if isinstance(deed, Signal):
            self._signal(deed)
        elif isinstance(deed, Fault):
            self._fault(deed)
        else:
            self._done(deed, self._source.cancel(), "cancel")

    def _done(self, deed: Deed, pid: int, what: str) -> None:
        with self._lock:
            self._last = time.monotonic()
            self.record.done.append(Done(self._last, deed, pid, what))
            self._trace(what)

    def _signal(self, deed: Signal) -> None:
        process = self._family.find(deed.side, deed.role)
        if process is None and self._may_come(deed):
            with self._lock:
                heapq.heappush(self._due, (time.monotonic() + _LOOK, next(self._order), deed))
            return
        if process is None or not process.kill(deed.number):
            self._done(deed, 0, f"{deed.number.name}: no {deed.side} {deed.role}")
            return
        self._done(deed, process.pid, f"{deed.number.name} to {deed.side} {deed.role}")
        if deed.number is signal.SIGSTOP:
            with self._lock:
                due = time.monotonic() + deed.seconds
                heapq.heappush(self._due, (due, next(self._order), process))

    def _may_come(self, deed: Signal) -> bool:
        """Return whether a process that is not there may still be started."""
        end = self._source if deed.side == "source" else self._destination
        began = self.record.marks.get(deed.trigger.mark, 0.0)
        soon = time.monotonic() < began + deed.trigger.delay + _COMES_WITHIN
        return soon and not end.over and "closed" not in self.record.marks

    def _fault(self, deed: Fault) -> None:
        proxy = self._proxy
        if proxy is None or not proxy.connected or proxy.over:
            self._done(deed, 0, f"{deed.kind}: no link")
            return
        if threading.current_thread() is proxy.thread:
            _FAULTS[deed.kind](proxy, deed)
        else:
            proxy.ask(lambda proxy: _FAULTS[deed.kind](proxy, deed))
        self._done(deed, 1, f"link: {deed.kind} {deed.direction}")
        if deed.kind in ("stall", "swallow"):
            self._dead_link = True
            self._fire("stalled")

    def _do_due(self) -> None:
        while True:
            with self._lock:
                if not self._due or self._due[0][0] > time.monotonic():
                    return
                _, _, item = heapq.heappop(self._due)
            if isinstance(item, Process):
                item.kill(signal.SIGCONT)
                self._last = time.monotonic()
                self._trace(f"SIGCONT to {self._family.describe(item)}")
            else:
                self._do(item)

    # The run.

    def perform(self) -> Record:
        """Do it all, to the end; nothing of it is left then, whatever happens."""
        try:
            if self._begin():
                self._until_over()
                self._until_ended()
                self._see_who_runs()
            self._end_services()
            if self.record.kept and not self.record.runs["source"]:
                self._take_up()
            self._end_guests()
        finally:
            self._clean_up()
        self.record.seconds = time.monotonic() - self.record.started
        return self.record

    def _begin(self) -> bool:
        """Start both ends; whether both did start."""
        self._destination.start()
        self._fire("begun")
        until = time.monotonic() + _LISTENS_WITHIN * busy()
        while (target := self._destination.address()) is None:
            self._turn()
            if self._destination.over:
                return False
            if time.monotonic() > until:
                self.record.hung.append("destination does not listen")
                return False
        self._starting = time.monotonic() - self.record.started
        proxy = self._proxy = Proxy(target, self._fire)
        for deed in self.plan.deeds:
            if deed.trigger.mark.startswith("byte "):
                proxy.mark_position(int(deed.trigger.mark.split()[1]), deed.trigger.mark)
        proxy.start()
        self._source.start(proxy.address)
        self._fire("started")
        return True

    def _turn(self) -> None:
        """Look at everything once, and do what is due."""
        self._do_due()
        self._watch.look()
        if time.monotonic() >= self._next_scan:
            self._next_scan = time.monotonic() + _SCAN
            self._family.scan()
        time.sleep(_LOOK)

    def _last_event(self) -> float:
        stirred = 0.0 if self._proxy is None else self._proxy.stirred
        return max(self._last, stirred, self._source.changed, self._destination.changed)

    def _until_over(self) -> None:
        """Wait until both ends know how it ended; end once from outside what would never end."""
        while not (self._source.over and self._destination.over) or self._due:
            self._turn()
            waits = not self._ended_outside and self._may_wait()
            if self._due or time.monotonic() - self._last_event() < self._patience(waits):
                continue
            if self._waits_for_another():
                self._finish("TERM")
            elif not waits:
                self._note_hung()
                return
            else:
                self._finish(self.plan.final)

    def _patience(self, waits: bool) -> float:
        """Return the seconds of quiet after which something is wrong, or is to be ended from
        outside.

        `waits`: an end may rightly wait for ever.
        """
        if not waits:
            return ENDED_WITHIN + self._allowance()
        if self._source.over:
            return 1.0
        assert self._proxy is not None
        short = self._proxy.connected and not self.plan.long
        # What is slow to start is slow to send its first byte, too.
        return ENDED_WITHIN + (2 * self._starting if short else ANSWER_WITHIN + self._allowance())

    def _allowance(self) -> float:
        self.record.allowance = max(self.record.allowance, ALLOWANCE * busy())
        return self.record.allowance

    def _may_wait(self) -> bool:
        """Return whether an end that still waits is right to wait, because it cannot know."""
        proxy = self._proxy
        assert proxy is not None
        return not proxy.begun or (self._dead_link and not proxy.over)

    def _waits_for_another(self) -> bool:
        """Return whether the destination did not take the connection for a source's, which has
        gone.
        """
        said = self._destination.said()
        refused = "ended before it said what it is" in said or "who has left was refused" in said
        return refused and not self._ended_by_term

    def _finish(self, how: str) -> None:
        self._ended_outside = True
        proxy = self._proxy
        assert proxy is not None
        if how != "TERM" and proxy.connected and not proxy.over:
            proxy.ask(lambda proxy: proxy.cut(reset=how == "reset"))
        else:
            how = "TERM"
            self._ended_by_term = True
            # What ends a service ends its guest.
            if not self._source.over:
                self._source.cancel()
            if not self._destination.over:
                self._destination.signal(signal.SIGTERM)
        self._last = time.monotonic()
        self._trace(f"final: {how}")

    def _note_hung(self) -> None:
        for name, end in (("source", self._source), ("destination", self._destination)):
            if not end.over:
                self.record.hung.append(name)
        self._trace(f"hung: {self.record.hung}")

    def _until_ended(self) -> None:
        """Wait until all that has to end has ended, and note what is left."""
        last = self._last_event()
        until = last + ENDED_WITHIN + self._allowance()
        while left := self._left():
            self._turn()
            if time.monotonic() > until:
                self.record.left += [self._family.describe(process) for process in left]
                break
        self.record.ended_after = time.monotonic() - last
        self._trace("ended")

    def _left(self) -> list[Process]:
        """Return the processes that should have ended: all but guests, and services that still
        serve.
        """
        served = {
            side
            for side, end in (("source", self._source), ("destination", self._destination))
            if end.serves
        }
        stays = {"command", "forkserver"}
        return [
            process
            for process in self._family.alive()
            if (role := self._family.role(process)) != "guest"
            and not (process.side in served and role in stays)
            and not (process.side == "destination" and role == "child" and self._alone())
        ]

    def _alone(self) -> bool:
        """Return whether what is left of the destination waits for a word on a link that swallows
        it.

        Its command was killed, so nobody can have it leave.
        """
        return self._dead_link and self._destination.over and not self._link_over()

    def _link_over(self) -> bool:
        return self._proxy is None or self._proxy.over

    def _see_who_runs(self) -> None:
        """Watch both guests for a while, and where none is seen to run, for some seconds more."""
        now = time.time()
        sides = ("source", "destination")
        while time.time() < now + _LINGER or (
            not any(self._runs_since(now, side) for side in sides)
            and not self._arrived_and_ended()
            # What is kept is kept for as long as its option says, which may be less than this.
            and not (self._is_kept() and time.time() > now + ENDED_WITHIN)
            and time.time() < now + ENDED_WITHIN + self._allowance()
        ):
            self._turn()
        for side in sides:
            self.record.runs[side] = self._runs_since(now, side)
            self.record.began |= self._watch.heart(side).first_run is not None
        memory = getattr(self._source, "memory", None)
        if memory is not None and (self.record.guest_folder / "guest.json").exists():
            self.record.unequal = unequal(self.record.guest_folder, memory)

        self.record.kept = self._is_kept()

    def _arrived_and_ended(self) -> bool:
        """Return whether the guest arrived where it does not run, or ended with its command."""
        at_rest = (self.record.guest_folder / "guest.json").exists()
        return at_rest or "receiving: completed" in self._destination.said()

    def _runs_since(self, moment: float, side: str) -> bool:
        last = self._watch.heart(side).last_run
        return last is not None and last.time > moment

    def _is_kept(self) -> bool:
        if self.plan.guest == "dir":
            return (
                not (self.record.guest_folder / "guest.json").exists()
                and (self.record.guest_folder / "guest.json.new").exists()
            )
        return self._keeper() is not None

    def _keeper(self) -> int | None:
        """Return the guest process at the destination that waits to be taken up."""
        names = Path("/proc/net/unix").read_text(encoding="ascii", errors="replace").split()
        waiting = (pid for pid in self._watch.destination.pids if f"@vmferry-guest-{pid}" in names)
        return next(waiting, None)

    def _take_up(self) -> None:
        """Do what the message of a destination that keeps a guest says."""
        guest = f"dir:{self.record.guest_folder}"
        if self.plan.guest != "dir":
            guest = f"synthetic:pid={self._keeper()}"
        command = [*VMFERRY, "receive", "--resume", "--guest", guest]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._family.environment("destination") | {"TMPDIR": str(self.folder / "tmp")},
            capture_output=True,
            text=True,
            timeout=_LISTENS_WITHIN * busy(),
            check=False,
        )
        self.record.taken_up = done.stderr.strip() if done.returncode else ""
        self._trace(f"taken up: {self.record.taken_up or 'well'}")
        until = time.monotonic() + ENDED_WITHIN + self._allowance()
        while self.plan.guest != "dir" and not self.record.taken_up:
            self._turn()
            last = self._watch.destination.last
            if last is not None and last.running:
                return
            if time.monotonic() > until:
                self.record.taken_up = "the guest that was taken up does not run"

    def _end_services(self) -> None:
        """Have services end, and note the status of all commands."""
        for side, end in (("source", self._source), ("destination", self._destination)):
            self.record.migration[side] = end.migration
            if end.serves:
                end.signal(signal.SIGTERM)
        until = time.monotonic() + ENDED_WITHIN + self._allowance()
        while left := [p for p in self._family.alive() if self._family.role(p) != "guest"]:
            self._turn()
            if time.monotonic() > until:
                self.record.left += [self._family.describe(process) for process in left]
                break

    def _end_guests(self) -> None:
        """Wait for guests that are left alone to end, or do not."""
        if self._proxy is not None and not self._proxy.over:
            # A guest that was given up waits for news for as long as there is a connection.
            self._proxy.ask(lambda proxy: proxy.cut(reset=True))
        until = time.monotonic() + self._source.orphan + ENDED_WITHIN + self._allowance()
        while self.plan.patient and (left := self._family.alive()):
            self._turn()
            if time.monotonic() > until:
                self.record.left += [self._family.describe(process) for process in left]
                break
        self._watch.look()
        self.record.two = self._watch.two

    def _clean_up(self) -> None:
        """End whatever is left of the run, and what it made in memory."""
        for process in self._family.alive():
            process.kill(signal.SIGKILL)
        for side, end in (("source", self._source), ("destination", self._destination)):
            self.record.status[side] = end.close()
            self.record.stderr[side] = end.said()
        if self._proxy is not None:
            self._proxy.close()
            start = self.record.started
            self.record.link = [f"{at - start:7.3f} {what}" for at, what in self._proxy.events]
        until = time.monotonic() + ENDED_WITHIN
        while self._family.alive() and time.monotonic() < until:
            with suppress(ChildProcessError):
                time.sleep(_LOOK)


_FAULTS: dict[str, Callable[[Proxy, Fault], None]] = {
    "hold": lambda proxy, deed: proxy.hold(deed.direction, deed.seconds),
    "slow": lambda proxy, deed: proxy.slow(deed.direction, deed.seconds),
    "stall": lambda proxy, deed: proxy.stall(deed.direction),
    "swallow": lambda proxy, deed: proxy.swallow(deed.direction),
    "half": lambda proxy, deed: proxy.half_close(deed.direction),
    "reset": lambda proxy, _: proxy.cut(reset=True),
    "close": lambda proxy, _: proxy.cut(reset=False),
}


def perform(plan: Plan, folder: Path) -> Record:
    """Do a run in this folder, which must be empty."""
    (folder / "tmp").mkdir(parents=True)
    return Run(plan, folder).perform()
