"""A QMP client for people: one command, or the progress of a migration that another one steers.

Whatever speaks QMP will do: a QEMU, or a service of vmferry. The protocol is the library's work.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

from ...control.extensions import PREFIX
from ...sender.figures import CompressionFigures, ThrottleFigures
from ...sender.stall import Stall
from ...transport.uri import Tcp, Unix, UriError, parse_uri
from ..console.interruption import Interrupted, signals_in
from ..console.progress import Progress

Address: TypeAlias = str | tuple[str, int]
T = TypeVar("T")

GREETING = 5.0
"""Seconds that a peer may take to greet. A QEMU greets one client at a time."""
PERIOD = 0.5
"""Seconds between two looks at a migration."""
ENDED = ("completed", "failed", "cancelled")


class CtlError(Exception):
    """The peer refused, or is not there; one line."""


class ArgumentError(ValueError):
    """An address or an argument that is none; one line."""


def parse_address(text: str) -> Address:
    """From a path or HOST:PORT; what has a slash is a path. Raises ArgumentError."""
    uri = text
    if not text.startswith(("unix:", "tcp:")):
        uri = f"unix:{text}" if "/" in text or ":" not in text else f"tcp:{text}"
    try:
        parsed = parse_uri(uri)
    except UriError as error:
        raise ArgumentError(f"{text!r} is neither a path nor HOST:PORT: {error}") from None
    if isinstance(parsed, Tcp):
        return parsed.host or "localhost", parsed.port
    assert isinstance(parsed, Unix)
    return parsed.path


def parse_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """From `KEY=VALUE`, where `A.B=VALUE` is member B of object A. Raises ArgumentError."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        *outer, last = key.split(".")
        if not equals or not last or not all(outer):
            raise ArgumentError(f"{pair!r} is not KEY=VALUE")
        place: Any = arguments
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ArgumentError(f"{pair!r}: {name} has a value already")
        if last in place:
            raise ArgumentError(f"{pair!r}: {key} comes twice")
        place[last] = _value(text)
    return arguments


def _value(text: str) -> Any:
    """JSON where it is that, else text; JSON has no NaN and no infinity."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return text
    return value


def execute(address: str, command: str, arguments: dict[str, Any]) -> object:
    """What the peer returns. Raises CtlError with the class and the text of its error."""

    async def session() -> object:
        async with _connected(address) as qmp:
            return await qmp.execute(command, arguments or None)

    return _run(session())


def watch(address: str, progress: Progress) -> dict[str, Any]:
    """Show a migration until it ends; the last answer of `query-migrate`. Raises CtlError."""

    async def session() -> dict[str, Any]:
        async with _connected(address) as qmp:
            return await _watch(qmp, progress)

    return _run(session())


def outcome(answer: dict[str, Any]) -> str:
    """How a migration ended, by the last answer of `query-migrate`; one line."""
    status = answer["status"]
    if status == "cancelled":
        return "the migration was cancelled"
    if status != "completed":
        return ": ".join(["the migration failed", *filter(None, [answer.get("error-desc")])])
    times = ((name.replace("-", " "), answer.get(name)) for name in ("total-time", "downtime"))
    told = [f"{name} {value} ms" for name, value in times if value is not None]
    return ", ".join(["the migration completed", *told])


async def _watch(qmp: QMPClient, progress: Progress) -> dict[str, Any]:
    waiting = False
    with qmp.listener("MIGRATION") as changes:
        while True:
            answer = await qmp.execute("query-migrate")
            if isinstance(answer, dict) and answer.get("status", "none") != "none":
                progress.update(Watched.of(answer))
                if answer["status"] in ENDED:
                    return answer
            elif not waiting:
                waiting = True
                progress.say("waiting for a migration to begin")
            # Peers tell of changes only where the capability `events` is on.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changes.get(), PERIOD)


@dataclass(frozen=True)
class Watched:
    """Figures out of an answer of `query-migrate`, as `Progress` shows them.

    A QEMU that takes a guest in has no `ram`, and none has what stands under our own names.
    """

    status: str
    total: int = 0
    transferred: int = 0
    remaining: int = 0
    mbps: float = 0.0
    dirty_sync_count: int | None = None
    throttle: ThrottleFigures | None = None
    remaining_time: int | None = None
    stall: Stall | None = None
    compression: CompressionFigures | None = None

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Watched:
        """Figures that are missing, or are no numbers, are 0."""
        ram = answer.get("ram")
        if not isinstance(ram, dict):
            return cls(str(answer["status"]))
        throttle = _number(answer, "cpu-throttle-percentage")
        return cls(
            str(answer["status"]),
            _number(ram, "total"),
            _number(ram, "transferred"),
            _number(ram, "remaining"),
            _number(ram, "mbps"),
            _number(ram, "dirty-sync-count"),
            ThrottleFigures(throttle, throttle),
            _number(answer, f"{PREFIX}remaining-time"),
            _stall(answer.get(f"{PREFIX}stall")),
            _compression(answer.get(f"{PREFIX}compression")),
        )


def _number(figures: dict[str, Any], name: str) -> Any:
    value = figures.get(name)
    return value if isinstance(value, (int, float)) else 0


def _stall(told: Any) -> Stall | None:
    """None where the peer says nothing of the kind."""
    advice = told.get("advice") if isinstance(told, dict) else None
    if not isinstance(advice, list):
        return None
    return Stall(str(told.get("reason")), tuple(map(str, advice)))


def _compression(told: Any) -> CompressionFigures | None:
    """The same."""
    levels = told.get("levels") if isinstance(told, dict) else None
    if not levels or not all(isinstance(level, int) for level in levels):
        return None
    sizes = (_number(told, name) for name in ("raw-size", "compressed-size"))
    return CompressionFigures(str(told.get("method")), tuple(levels), *sizes)


def _run(session: Coroutine[Any, Any, T]) -> T:
    # What it logs is what it raises, or of no interest to a person.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)
    return asyncio.run(_until_signal(session))


async def _until_signal(session: Coroutine[Any, Any, T]) -> T:
    """The session's result; a signal ends it in order, and then this raises Interrupted."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(session)
    numbers: list[int] = []

    def cancel(number: int) -> None:
        numbers.append(number)
        task.cancel()

    with signals_in(loop, cancel):
        try:
            return await task
        except asyncio.CancelledError:
            raise Interrupted(128 + numbers[0]) from None


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[QMPClient]:
    qmp = QMPClient()
    try:
        await asyncio.wait_for(qmp.connect(parse_address(address)), GREETING)
        yield qmp
    except asyncio.TimeoutError:
        message = f"no QMP greeting within {GREETING:.0f} s; a QEMU talks to one client at a time"
        raise CtlError(f"{address}: {message}") from None
    except ExecuteError as error:
        raise CtlError(f"{error.error_class}: {error}") from None
    except ConnectError as error:
        raise CtlError(f"{address}: {_reason(error)}") from None
    except QMPError as error:
        raise CtlError(f"{address}: the connection broke: {error}") from None
    finally:
        # That the peer hung up is no news behind its answer, and else is raised already.
        with suppress(OSError, EOFError, QMPError):
            await qmp.disconnect()


def _reason(error: ConnectError) -> str:
    cause = error.exc
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(error)
