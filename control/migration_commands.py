"""Commands that start, end, steer and show migrations."""

from __future__ import annotations

from typing import Any

from ..protocol.states import MigrationStatus
from ..transport.settings import Disks
from .arguments import Argument, boolean, choice, string
from .command import Call, command
from .errors import QmpError

_STATES = tuple(status.value for status in MigrationStatus)


@command(
    "migrate",
    Argument("uri", string),
    Argument("blk", boolean, default=False),
    Argument("inc", boolean, default=False),
    Argument("detach", boolean, default=True),
    Argument("resume", boolean, default=False),
)
def migrate(call: Call, uri: str, blk: bool, inc: bool, detach: bool, resume: bool) -> None:
    """Start to migrate the guest away; `detach` is ignored, as in QEMU: the answer is immediate."""
    del detach
    if resume:
        raise QmpError("Cannot resume if there is no paused migration")
    call.service.outgoing.refuse_if_active()
    call.service.outgoing.start(uri, _disks(call, blk=blk, inc=inc))


def _disks(call: Call, *, blk: bool, inc: bool) -> Disks:
    """Return what the client wants to be moved of the disks. Raises QmpError."""
    always = call.service.capabilities["block"]
    if always and (blk or inc):
        raise QmpError("Command options are incompatible with current migration capabilities")
    if inc:
        return Disks.TOP
    return Disks.ALL if blk or always else Disks.NONE


@command("migrate-incoming", Argument("uri", string))
async def migrate_incoming(call: Call, uri: str) -> None:
    """Wait for a guest, after `--incoming defer` or after the last guest migrated away."""
    await call.service.take_in().start(uri)


@command("migrate_cancel")
def migrate_cancel(call: Call) -> None:
    """Cancel the outgoing migration, if there is one."""
    call.service.outgoing.cancel()


@command("migrate-continue", Argument("state", choice(_STATES)))
def migrate_continue(call: Call, state: str) -> None:
    """Continue from `pre-switchover`."""
    call.service.outgoing.proceed(state)


@command("migrate-pause")
def migrate_pause(_: Call) -> None:
    """Raise QmpError: only postcopy, which vmferry lacks, can be paused."""
    raise QmpError("migrate-pause is currently only supported during postcopy-active state")


@command("query-migrate")
def query_migrate(call: Call) -> Any:
    """Return the figures of the present migration, or of the last one."""
    service = call.service
    answer = service.incoming.query() if service.incoming is not None else {}
    answer |= service.outgoing.query()
    if service.guest.blockers:
        answer["blocked-reasons"] = list(service.guest.blockers)
    return answer
