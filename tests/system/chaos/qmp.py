"""A QMP client that gives up: a service under test may be stopped, or be killed in the middle."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

TIMEOUT = 3.0
"""Seconds that an answer may take where the service may be stopped."""


class NoAnswerError(Exception):
    """The service did not answer, or refused; one line."""


def ask(path: Path, name: str, /, timeout: float = TIMEOUT, **arguments: Any) -> Any:
    """Give one command on a connection of its own. Raises NoAnswerError."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            with sock.makefile("rwb") as file:
                file.readline()
                _answer(file, "qmp_capabilities", {})
                return _answer(file, name, arguments)
    except (OSError, ValueError) as error:
        raise NoAnswerError(f"{name}: {error}") from error


def _answer(file: Any, name: str, arguments: dict[str, Any]) -> Any:
    message = {"execute": name, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
    if name == "migrate_cancel":
        message["execute"] = name
    file.write(json.dumps(message).encode() + b"\n")
    file.flush()
    while True:
        line = file.readline()
        if not line:
            raise NoAnswerError(f"{name}: the service is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise NoAnswerError(f"{name}: {answer['error'].get('desc')}")
        if "return" in answer:
            return answer["return"]
