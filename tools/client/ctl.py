"""A QMP client for users: executes one command, or shows the progress of a migration.

The peer can be anything that supports QMP: a QEMU, or a service of vmferry. The library qemu.qmp
implements the protocol.
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
from ...protocol.errors import VmferryError
from ...sender.figures import CompressionFigures, DiskFigures, ThrottleFigures
from ...sender.stall import Explanation
from ...transport.uri import Tcp, Unix, UriError, parse_uri
from ..console.interruption import Interrupted, signals_in
from ..console.progress import Progress

Address: TypeAlias = str | tuple[str, int]
T = TypeVar("T")

GREETING = 5.0
"""The time in seconds that a peer has to send its greeting. A QEMU greets one client at a time."""
PERIOD = 0.5
"""The interval in seconds between two queries of a migration."""
ENDED = ("completed", "failed", "cancelled")


class CtlError(VmferryError):
    """Raised if the peer returns an error or cannot be reached; the message is one line."""


class ArgumentError(VmferryError, ValueError):
    """Raised if an address or an argument is invalid; the message is one line."""


def parse_address(text: str) -> Address:
    """Return the address in a path or HOST:PORT; text with a slash is a path.

    Raises ArgumentError.
    """
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
    """Return the arguments in `KEY=VALUE` pairs, where `A.B=VALUE` sets member B of object A.

    Raises ArgumentError.
    """
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
            raise ArgumentError(f"{pair!r}: {key} occurs twice")
        place[last] = _value(text)
    return arguments


def _value(text: str) -> Any:
    """Return the value of JSON text, or the text itself; NaN and infinity are not JSON."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return text
    return value


def execute(address: str, command: str, arguments: dict[str, Any]) -> object:
    """Return the result of a QMP command. Raises CtlError with the class and text of the peer's
    error.
    """

    async def session() -> object:
        async with _connected(address) as qmp:
            return await qmp.execute(command, arguments or None)

    return _run(session())


def watch(address: str, progress: Progress) -> dict[str, Any]:
    """Show a migration until it ends; return the last `query-migrate` answer. Raises CtlError."""

    async def session() -> dict[str, Any]:
        async with _connected(address) as qmp:
            return await _watch(qmp, progress)

    return _run(session())


def outcome(answer: dict[str, Any]) -> str:
    """Return a line on how a migration ended, from the last answer of `query-migrate`."""
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
            # Peers only send events if the capability `events` is on, so query periodically, too.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changes.get(), PERIOD)


@dataclass(frozen=True)
class Watched:
    """The figures in an answer of `query-migrate`, in the form that `Progress` shows.

    A QEMU that receives a guest has no `ram`, and no QEMU has the members with vmferry's prefix.
    Sizes are of RAM and disks together.
    """

    status: str
    total: int = 0
    transferred: int = 0
    remaining: int = 0
    dirty_sync_count: int | None = None
    throttle: ThrottleFigures | None = None
    remaining_time: int | None = None
    stall: Explanation | None = None
    compression: CompressionFigures | None = None
    tracker: str | None = None
    disk: DiskFigures | None = None

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Watched:
        """Return the figures in an answer; figures that are missing or not numbers are 0."""
        ram = answer.get("ram")
        if not isinstance(ram, dict):
            return cls(str(answer["status"]))
        throttle, disk = _number(answer, "cpu-throttle-percentage"), answer.get("disk")
        disk = disk if isinstance(disk, dict) else {}
        sizes = ("total", "transferred", "remaining")
        total, transferred, remaining = (_number(ram, s) + _number(disk, s) for s in sizes)
        return cls(
            str(answer["status"]),
            total,
            transferred,
            remaining,
            _number(ram, "dirty-sync-count"),
            ThrottleFigures(throttle, throttle),
            _number(answer, f"{PREFIX}remaining-time"),
            _stall(answer.get(f"{PREFIX}stall")),
            _compression(answer.get(f"{PREFIX}compression")),
            _text(answer.get(f"{PREFIX}tracker")),
            DiskFigures(*(_number(disk, size) for size in sizes)) if disk else None,
        )


def _number(figures: dict[str, Any], name: str) -> Any:
    value = figures.get(name)
    return value if isinstance(value, (int, float)) else 0


def _text(told: Any) -> str | None:
    """Return a text in an answer, or None if the peer does not report it."""
    return told if isinstance(told, str) else None


def _stall(told: Any) -> Explanation | None:
    """Return the stall in an answer, or None if the peer does not report one."""
    advice = told.get("advice") if isinstance(told, dict) else None
    if not isinstance(advice, list):
        return None
    return Explanation(str(told.get("reason")), tuple(map(str, advice)))


def _compression(told: Any) -> CompressionFigures | None:
    """Return the compression figures in an answer, or None if the peer does not report any."""
    levels = told.get("levels") if isinstance(told, dict) else None
    if not levels or not all(isinstance(level, int) for level in levels):
        return None
    sizes = (_number(told, name) for name in ("raw-size", "compressed-size"))
    return CompressionFigures(str(told.get("method")), tuple(levels), *sizes)


def _run(session: Coroutine[Any, Any, T]) -> T:
    # The library logs errors that it also raises, and details that do not help a user.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)
    return asyncio.run(_until_signal(session))


async def _until_signal(session: Coroutine[Any, Any, T]) -> T:
    """Return the session's result; a signal cancels the session and then raises Interrupted."""
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
        # A peer that hung up after its answer is no error; before it, the error is already raised.
        with suppress(OSError, EOFError, QMPError):
            await qmp.disconnect()


def _reason(error: ConnectError) -> str:
    cause = error.exc
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(error)
