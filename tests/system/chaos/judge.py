"""Says what is wrong with a run, and in one word how it ended.

Who holds the guest
-------------------
A guest has one holder at each moment, and only what kills the holder may cost the guest.

1. Until the destination's SHUT 0 was read by the source, the source's guest process holds it. Every
   other process of the source may die: the guest runs on where it was. Of the destination
   everything may die: the guest runs on at the source.
2. SHUT 0 was read, and the source's CONFIRM was not delivered: the destination holds it, complete
   and paused, in the guest's process, or in the folder of a `dir:` guest. The source's command and
   its guest process can each send the CONFIRM. If the link breaks in this window, or both of them
   die, nobody can know the word any more (two generals): the guest stays paused at the destination,
   the source says so, and `vmferry receive --resume` takes it up. No other run may end like this.
3. CONFIRM was delivered: the destination's guest process holds the guest, and runs it. A `dir:`
   guest is whole in its folder, whatever dies.

A `dir:` guest is on the disk from step 2 on, so killing processes never costs it there.

So a run in which no guest runs, and none is kept, is a lost guest, except where
- the source's guest process was killed, and the destination never said SHUT 0, or the destination's
  guest process was killed as well;
- the destination's guest process was killed after CONFIRM had been delivered; or after it had said
  SHUT 0, and its command was killed as well, or the link broke, so that no SHUT 1 could return the
  guest;
- a service (`serve`) that held the guest was ended by SIGTERM, SIGHUP or SIGINT: this is how a user
  ends a guest;
- a command was asked to end before it had connected: it ends the guest that it has just started;
- without a return path (rule "no answer"): the source gives its guest up when the stream is sent.
  What breaks at the destination or on the link from then on costs the guest.

A command that is killed by SIGKILL cannot clean up: the names of its sockets may stay. The files of
a `dir:` guest that was not whole are removed by its transport process, unless that was killed, too.

Two guests are never right, and neither is a source that runs beside a `dir:` guest that is whole.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field

from .directory import RestState, at_rest
from .plan import Cancel, Fault, Signal
from .run import ENDED_WITHIN, Done, Record

_NOISE = re.compile(r"Traceback|Exception ignored|Error in |leaked|Fatal Python|Segmentation")
_NOT_BEGUN = re.compile(
    r"Traceback(?:(?!Traceback|tools/__main__\.py).)*\nKeyboardInterrupt\n", re.DOTALL
)
"""Output of the interpreter if Ctrl-C arrives before it runs a line of the command."""
_HELD_THERE = re.compile(r"the destination (has the (whole )?guest|says that it keeps)|left alone")
NEVER = float("inf")


@dataclass
class Verdict:
    """Verdict on a run: `outcome` in a word or two, and one line for each thing that is wrong."""

    outcome: str
    faults: list[str] = field(default_factory=list)


def judge(record: Record) -> Verdict:
    """Look at everything that was seen of a run."""
    judge_ = Judge(record)
    return Verdict(judge_.outcome(), judge_.faults)


class Judge:
    """Looks at one record; `faults` is what was found by then."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._plan = record.plan
        self.faults: list[str] = []
        self._rest = self._at_rest()

    def _at_rest(self) -> RestState:
        if self._plan.guest == "dir":
            return at_rest(self._record.guest_folder)
        return RestState()

    def outcome(self) -> str:
        """Judge it all; the word for the end of the run."""
        record = self._record
        outcome = self._where()
        if record.two:
            self.faults.append(f"TWO GUESTS: {record.two}")
        if record.left:
            self.faults.append(f"left behind: {'; '.join(sorted(set(record.left)))}")
        if record.hung:
            self.faults.append(f"not over: {' and '.join(record.hung)}")
        if record.ended_after > ENDED_WITHIN + record.allowance:
            self.faults.append(f"ended {record.ended_after:.1f} s after the last event")
        self._check_files()
        self._check_words()
        return outcome

    # Where the guest is.

    def _where(self) -> str:
        record = self._record
        if self._rest.damage:
            self.faults.append(f"DAMAGED: {self._rest.damage}")
        if record.taken_up is not None:
            return self._judge_kept()
        source, destination = record.runs.get("source"), self._arrived()
        if source and destination and self._plan.guest == "dir":
            self.faults.append("TWO GUESTS: the source runs, and the folder holds a whole guest")
        if source:
            return "runs at the source" + (", kept at the destination" if record.kept else "")
        if destination:
            return "runs at the destination"
        if not record.began:
            return "did not begin"
        reason = self._excuse()
        if reason is None:
            self.faults.append("LOST: no guest runs, and none is kept")
            return "lost"
        return f"none: {reason}"

    def _arrived(self) -> bool:
        """Return whether the guest runs at the destination, or ran until its command was done."""
        record = self._record
        if self._plan.guest == "dir":
            return self._rest.whole
        # A synthetic guest ends with the command that received it.
        return bool(record.runs.get("destination")) or (
            self._plan.destination == "receive"
            and "receiving: completed" in record.stderr["destination"]
        )

    def _judge_kept(self) -> str:
        reason = self._window()
        if self._record.taken_up:
            self.faults.append(f"NOT TAKEN UP: {self._record.taken_up}")
        if reason is None:
            self.faults.append("KEPT: the guest stays paused at the destination without need")
            return "kept without need"
        answered = "before shut" in self._record.marks
        ended_itself = self._plan.source == "send" and (self._record.status["source"] or 0) > 0
        # A source that kept its guest, and lost it to a signal, knows of no copy.
        ended_itself = ended_itself and not self._killed("source", "guest")
        if answered and ended_itself and not _HELD_THERE.search(self._record.stderr["source"]):
            self.faults.append("the source does not say that the destination holds the guest")
        return f"kept: {reason}"

    def _window(self) -> str | None:
        """Return why nobody can know whether the guest may run, if that is so."""
        marks = self._record.marks
        if "before shut" not in marks:
            gone = "the source's guest was killed, and the destination kept what it had"
            ended = "the service that held it was ended" if self._ended_by_user("source") else None
            return gone if self._killed("source", "guest") else ended
        until = marks.get("confirm", NEVER)
        if any(self._is_break(done) and done.time <= until for done in self._record.done):
            return "the link broke between the answer and the word"
        killed = {d.deed.role for d in self._killed("source") if isinstance(d.deed, Signal)}
        if {"command", "guest"} <= killed:
            return "the source's command and guest were killed"
        if "confirm" not in marks and self._ended_by_user("source"):
            return "the service that held it was ended"
        return None

    def _link_broke(self) -> bool:
        return any(self._is_break(done) for done in self._record.done)

    @staticmethod
    def _is_break(done: Done) -> bool:
        return (
            isinstance(done.deed, Fault)
            and bool(done.pid)
            and done.deed.kind not in ("hold", "slow")
        )

    def _killed(self, side: str, *roles: str) -> list[Done]:
        """Return the signals by which processes of a side died."""
        return [
            done
            for done in self._record.to(side, *(roles or ("command", "guest", "transport")))
            if isinstance(done.deed, Signal) and done.deed.number is not signal.SIGSTOP
        ]

    def _excuse(self) -> str | None:
        """Return why there is no guest any more, if that is right."""
        marks = self._record.marks
        answered, told = marks.get("shut", NEVER), marks.get("confirm", NEVER)
        source, destination = self._killed("source", "guest"), self._killed("destination", "guest")
        late = [done for done in destination if done.time >= answered]
        reasons = {
            "the service that held it was ended": (
                self._ended_by_user("source", until=answered)
                or self._ended_by_user("source", since=marks.get("refused", NEVER))
                or self._ended_by_user("destination", since=told)
            ),
            "its command was ended before it had connected": (
                "connected" not in marks and self._source_was_asked_to_end()
            ),
            "the source's guest was killed": bool(source) and "before shut" not in marks,
            "the guests of both sides were killed": bool(source and destination),
            "the destination's guest was killed when it ran": any(
                done.time >= told for done in late
            ),
            "the destination's guest was killed, and nobody could say so": any(
                done.time >= marks.get("before shut", NEVER) for done in destination
            )
            and bool(self._killed("destination", "command") or self._link_broke()),
            "no answer was asked for": (
                not self._plan.return_path
                and any(done.pid for done in self._record.done)
                and (
                    "before end" in marks
                    or "--compress" in self._plan.options
                    or self._record.status.get("source") == 0
                    # Its figures come last; it may have been killed behind them.
                    or "total time" in self._record.stderr["source"]
                )
            ),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _source_was_asked_to_end(self) -> bool:
        signalled = any(_asks_to_end(done) for done in self._record.to("source", "command"))
        cancelled = any(isinstance(done.deed, Cancel) and done.pid for done in self._record.done)
        return signalled or (cancelled and self._plan.source == "send")

    def _ended_by_user(self, side: str, *, since: float = 0.0, until: float = NEVER) -> bool:
        kind = self._plan.source if side == "source" else self._plan.destination
        return kind == "serve" and any(
            since <= done.time <= until + 0.5 and _asks_to_end(done)
            for done in self._record.to(side, "command")
        )

    # What is left, and what was said.

    def _check_files(self) -> None:
        record = self._record
        left = sorted(path.name for path in (record.folder / "tmp").iterdir())
        if left:
            self.faults.append(f"temporary files: {' '.join(left)}")
        for name in ("source.qmp", "destination.qmp", "link"):
            side = "source" if name.startswith("source") else "destination"
            kind = self._plan.source if side == "source" else self._plan.destination
            stock = kind.startswith("qemu")
            path = record.folder / name
            if path.exists() and not self._was_killed(side) and not stock:
                self.faults.append(f"a socket is left: {name}")
        first = record.folder / "some"
        killed = self._was_killed("destination") and self._was_killed("destination", "transport")
        nothing = not (self._rest.whole or self._rest.kept or killed)
        if self._plan.guest == "dir" and nothing:
            found = sorted(str(p.relative_to(first)) for p in first.rglob("*"))
            if first.exists():
                self.faults.append(f"a folder is left: some {' '.join(found[:6])}")

    def _was_killed(self, side: str, role: str = "command") -> bool:
        """Return whether the process that should have cleaned up was killed."""
        return any(
            isinstance(done.deed, Signal) and done.deed.number is signal.SIGKILL
            for done in self._record.to(side, role)
        )

    def _check_words(self) -> None:
        record = self._record
        for side, text in record.stderr.items():
            if found := _NOISE.search(_NOT_BEGUN.sub("", text)):
                last = text.strip().splitlines()[-1:]
                self.faults.append(f"{side} stderr: {found.group()} ... {' '.join(last)}")
        self._check_status()

    def _check_status(self) -> None:
        record = self._record
        for side, kind in (("source", self._plan.source), ("destination", self._plan.destination)):
            succeeded = kind in ("send", "receive") and record.status.get(side) == 0
            if succeeded and record.runs.get("source"):
                self.faults.append(f"{kind}: exit status 0, and the guest runs at the source")


def _asks_to_end(done: Done) -> bool:
    return isinstance(done.deed, Signal) and done.deed.number in (
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGINT,
    )
