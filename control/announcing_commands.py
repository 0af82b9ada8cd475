"""The command that announces the guest on demand."""

from __future__ import annotations

from typing import Any

from .announce import AnnounceError, AnnounceParameters
from .arguments import Argument, array, integer, string
from .command import Call, command
from .errors import QmpError


@command(
    "announce-self",
    Argument("initial", integer),
    Argument("max", integer),
    Argument("rounds", integer),
    Argument("step", integer),
    Argument("interfaces", array(string), None),
    Argument("id", string, None),
)
def announce_self(call: Call, interfaces: list[str] | None, **given: Any) -> None:
    """Announce the guest now; `id` is ignored, because the announcement starts at once."""
    del given["id"]
    announcing = call.service.announcing
    try:
        announcing.announce(announcing.chosen(interfaces), AnnounceParameters(**given))
    except AnnounceError as error:
        raise QmpError(str(error)) from error
