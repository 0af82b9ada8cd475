"""Judges a run with a QEMU at one end; `stock` has the rules."""

from __future__ import annotations

from .directory import RestState, at_rest
from .judge import Judge, Verdict
from .plan import Fault, Signal
from .run import Record

_BREAKS = ("reset", "close", "half", "stall", "swallow")
_CLOSES = ("close", "half")


def judge_stock(record: Record) -> Verdict:
    """Look at everything that was seen of a run with a QEMU."""
    judge = _FromQemu(record) if record.plan.source.startswith("qemu") else _ToQemu(record)
    return Verdict(judge.outcome(), judge.faults)


class _Stock(Judge):
    def _qemu_was_killed(self, side: str) -> bool:
        return any(
            isinstance(done.deed, Signal) and done.deed.number.name == "SIGKILL"
            for done in self._record.to(side, "command")
        )

    def _check_status(self) -> None:
        """Judge no exit status by where the guest runs: by QEMU's rules it may run at both ends."""

    def _broke(self, kinds: tuple[str, ...], until: float = float("inf")) -> bool:
        """Return whether the link did one of these, and not later."""
        return any(
            isinstance(done.deed, Fault)
            and bool(done.pid)
            and done.deed.kind in kinds
            and done.time <= until
            for done in self._record.done
        )

    def _by_no_answer(self) -> bool:
        """Return whether a source that asks for no answer had sent everything, and something
        happened.
        """
        record = self._record
        happened = any(done.pid for done in record.done)
        # What was sent need not have come as far as the proxy.
        sent = "before end" in record.marks or record.migration.get("source") == "completed"
        return not self._plan.return_path and happened and sent


class _FromQemu(_Stock):
    """A QEMU is the source, the guest arrives in a folder."""

    def _at_rest(self) -> RestState:
        return at_rest(self._record.guest_folder, synthetic=False)

    def _where(self) -> str:
        runs = self._record.runs.get("source")
        if self._rest.damage:
            self.faults.append(f"DAMAGED: {self._rest.damage}")
        if runs and self._rest.whole:
            return self._both()
        if runs:
            return "runs at the source"
        if self._rest.whole:
            if self._record.unequal:
                self.faults.append(f"DAMAGED: {self._record.unequal}")
            return "is at the destination"
        return self._nowhere()

    def _both(self) -> str:
        answered = self._record.marks.get("shut", float("inf"))
        if self._by_no_answer():
            return "two, by QEMU's rules: no answer was asked for"
        if self._broke(_CLOSES, answered):
            return "two, by QEMU's rules: the link closed in place of the source"
        self.faults.append("TWO GUESTS: the source runs, and the folder holds a whole guest")
        return "two"

    def _nowhere(self) -> str:
        marks = self._record.marks
        if "source" not in self._record.runs:
            return "did not begin"
        if self._rest.kept:
            broken = "shut" in marks and self._broke(_BREAKS, marks.get("confirm", float("inf")))
            if not broken and not self._qemu_was_killed("source"):
                self.faults.append("KEPT: the guest stays incomplete without need")
            return "kept"
        if self._qemu_was_killed("source") and "shut" not in marks:
            return "none: the QEMU was killed"
        if self._by_no_answer():
            return "none, by QEMU's rules: no answer was asked for"
        self.faults.append("LOST: no guest at the source, and none in the folder")
        return "lost"


class _ToQemu(_Stock):
    """A QEMU is the destination, a guest at rest is sent."""

    def _at_rest(self) -> RestState:
        return RestState(whole=True)

    def _where(self) -> str:
        sent = self._record.status.get("source") == 0
        if "source" not in self._record.runs:
            return "did not begin"
        if self._record.runs["destination"]:
            return "runs at the destination" + ("" if sent else ", by QEMU's rules: send failed")
        if not sent:
            return "stays at the source"
        if self._qemu_was_killed("destination"):
            return "none: the QEMU was killed"
        if self._by_no_answer():
            return "none, by QEMU's rules: no answer was asked for"
        self.faults.append("LOST: send succeeded, and the guest does not run at the destination")
        return "lost"
