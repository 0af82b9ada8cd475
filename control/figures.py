"""Lay out the figures of an outgoing migration as `query-migrate` does."""

from __future__ import annotations

from typing import Any

from ..protocol.states import MigrationStatus
from ..sender.figures import Figures
from .extensions import under_own_names


def laid_out(figures: Figures, rounds: int) -> dict[str, Any]:
    """Return the figures; `rounds` is the number of rounds that have begun."""
    answer = under_own_names(figures.as_qmp(), figures.stall)
    answer["ram"]["dirty-sync-count"] = rounds
    if not answer.get("cpu-throttle-percentage"):
        # QEMU reports it only while the guest is throttled.
        answer.pop("cpu-throttle-percentage", None)
    if figures.status is MigrationStatus.COMPLETED:
        # QEMU has no figures of disks any more.
        answer.pop("disk", None)
    return answer
