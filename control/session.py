"""Hold the conversation with one client: negotiation, commands and answers.

This module does no I/O.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from ..guest.errors import GuestError
from .arguments import Argument, array, check_arguments, choice
from .command import Call
from .commands import execute
from .errors import CommandNotFoundError, QmpError
from .monitor_commands import VERSION

_log = logging.getLogger(__name__)

GREETING: dict[str, Any] = {"QMP": {"version": VERSION, "capabilities": []}}
_NEGOTIATE = "qmp_capabilities"
_ENABLE = (Argument("enable", array(choice(())), default=None),)
_MEMBERS = {"execute": str, "arguments": dict, "id": object}


class Session:
    """The session of one client, which answers its messages in order."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.negotiated = False
        """True once events are sent and commands executed."""

    async def answer(self, message: Any) -> dict[str, Any]:
        """Return the answer to one message, which may be a QmpError in place of an invalid one."""
        answer: dict[str, Any] = {}
        name = message.get("execute") if isinstance(message, dict) else None
        if isinstance(message, dict) and "id" in message:
            answer["id"] = message["id"]
        try:
            answer["return"] = await self._do(message)
        except QmpError as error:
            answer["error"] = {"class": error.error_class, "desc": error.description}
        except GuestError as error:
            answer["error"] = {"class": QmpError.error_class, "desc": str(error)}
        except Exception as error:
            # A fault in a command must not end the service.
            traceback.print_exc()
            description = f"internal error: {type(error).__name__}: {error}"
            answer["error"] = {"class": QmpError.error_class, "desc": description}
        # Arguments may be secret, and there may be many. What a client wrote may have line breaks.
        ended = answer["error"]["desc"] if "error" in answer else "done"
        _log.info("%r: %s", name, " ".join(ended.split()))
        return answer

    async def _do(self, message: Any) -> Any:
        name, arguments = _taken_apart(message)
        if self.negotiated:
            if name == _NEGOTIATE:
                what = "Capabilities negotiation is already complete, command ignored"
                raise CommandNotFoundError(what)
            return await execute(self._call, name, arguments)
        if name != _NEGOTIATE:
            what = f"Expecting capabilities negotiation with '{_NEGOTIATE}'"
            raise CommandNotFoundError(what)
        check_arguments(_ENABLE, arguments)
        self.negotiated = True
        return {}


def _taken_apart(message: Any) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a command. Raises QmpError."""
    if isinstance(message, QmpError):
        raise message
    if not isinstance(message, dict):
        raise QmpError("QMP input must be a JSON object")
    for member, value in message.items():
        if member not in _MEMBERS:
            raise QmpError(f"QMP input member '{member}' is unexpected")
        if not isinstance(value, _MEMBERS[member]):
            kind = "a string" if member == "execute" else "an object"
            raise QmpError(f"QMP input member '{member}' must be {kind}")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    return message["execute"], message.get("arguments", {})
