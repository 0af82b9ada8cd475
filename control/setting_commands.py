"""Commands that set and show capabilities, parameters, and named descriptors."""

from __future__ import annotations

import math
from typing import Any

from ..guest.base import Guest
from ..guest.errors import GuestError
from ..sender.page_cache import CacheSizeError, cache_pages
from ..transport.settings import DOWNTIME_LIMIT, MAX_BANDWIDTH
from .arguments import Argument, array, boolean, choice, integer, number, string, structure
from .capabilities import CAPABILITIES
from .command import Call, command
from .errors import QmpError
from .parameters import ARGUMENTS

_CAPABILITY = structure(
    Argument("capability", choice(tuple(CAPABILITIES))), Argument("state", boolean)
)


@command("migrate-set-capabilities", Argument("capabilities", array(_CAPABILITY)))
def migrate_set_capabilities(call: Call, capabilities: list[dict[str, Any]]) -> None:
    """Switch capabilities on or off."""
    call.service.outgoing.refuse_if_active()
    call.service.capabilities.set((item["capability"], item["state"]) for item in capabilities)


@command("query-migrate-capabilities")
def query_migrate_capabilities(call: Call) -> Any:
    """Return all capabilities."""
    return call.service.capabilities.as_qmp()


@command("migrate-set-parameters", *ARGUMENTS)
def migrate_set_parameters(call: Call, **wanted: Any) -> None:
    """Change the given parameters."""
    given = {argument.name: wanted[argument.name.replace("-", "_")] for argument in ARGUMENTS}
    _set(call, {name: value for name, value in given.items() if value is not None})


@command("query-migrate-parameters")
def query_migrate_parameters(call: Call) -> Any:
    """Return all parameters."""
    return call.service.parameters.as_qmp()


@command("migrate_set_speed", Argument("value", integer))
def migrate_set_speed(call: Call, value: int) -> None:
    """Set the bandwidth limit in bytes per second, clamped to 0 (no limit) and the largest size."""
    _set(call, {"max-bandwidth": min(max(value, 0), MAX_BANDWIDTH.most)})


@command("migrate_set_downtime", Argument("value", number))
def migrate_set_downtime(call: Call, value: float) -> None:
    """Set the downtime limit in seconds, clamped to 0 and the largest limit."""
    _set(call, {"downtime-limit": clamped_downtime(value)})


def clamped_downtime(seconds: float) -> int:
    """Return a valid limit in milliseconds; a NaN gives 0."""
    if math.isnan(seconds):
        return 0
    return int(min(max(seconds * 1000, 0.0), float(DOWNTIME_LIMIT.most)))


@command("migrate-set-cache-size", Argument("value", integer))
def migrate_set_cache_size(call: Call, value: int) -> None:
    """Set the size of the XBZRLE cache in bytes, rounded down to a power of two."""
    guest = call.service.guest
    try:
        pages = cache_pages(value, _page_size(guest), guest.ram_size)
    except CacheSizeError as error:
        raise QmpError(f"Parameter 'value' is wrong: {error}") from error
    _set(call, {"xbzrle-cache-size": pages * _page_size(guest)})


@command("query-migrate-cache-size")
def query_migrate_cache_size(call: Call) -> Any:
    """Return the size of the XBZRLE cache in bytes."""
    return call.service.parameters["xbzrle-cache-size"]


def _set(call: Call, wanted: dict[str, Any]) -> None:
    call.service.parameters.set(wanted, _page_size(call.service.guest))
    try:
        call.service.outgoing.apply_parameters()
    except GuestError as error:
        raise QmpError(str(error)) from error


def _page_size(guest: Guest) -> int:
    """Return the guest's page size, or 4096 while the guest has not arrived."""
    return guest.machine.page_size if guest.blocks else 4096


@command("getfd", Argument("fdname", string))
def getfd(call: Call, fdname: str) -> None:
    """Name the descriptor that the client passed."""
    fd = call.caller.take_fd()
    if fd is None:
        raise QmpError("No file descriptor supplied via SCM_RIGHTS")
    call.service.descriptors.add(fdname, fd)


@command("closefd", Argument("fdname", string))
def closefd(call: Call, fdname: str) -> None:
    """Close a named descriptor."""
    call.service.descriptors.remove(fdname)
