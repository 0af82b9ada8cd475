"""The outgoing migration: drives the rounds, pauses the guest and hands it over.

    setup -> active: round 0, 1, ... -> guest paused, last round, devices -> completed

Whatever goes wrong before the destination has everything, the guest runs on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..guest.base import Guest, GuestError
from ..protocol.return_path import ReturnPathReader, Shut
from ..protocol.states import MigrationStatus, StateMachine
from ..transport.channel import Channel, ChannelError, connect
from ..transport.crew import Crew, CrewError, DeathError
from ..transport.meter import Meter
from ..transport.process import default_workers, processors
from ..transport.shared import wait_readable
from ..transport.uri import UriError, parse_uri
from . import stream
from .compression import parse_compression
from .convergence import Convergence, Round
from .figures import CompressionFigures, Figures, XbzrleFigures, XbzrleRounds
from .page_cache import DEFAULT_SIZE, cache_pages
from .processes import Processes
from .transport import CloseChannel, Closed, ReturnPathMessage, RoundSent
from .worker import StartRound

REPLY_TIMEOUT = 60.0
"""Seconds that a destination may take from the end of the stream to its answer."""
LATE_REPLY_TIMEOUT = 3.0
"""The same where the transport process is dead, and the guest is wanted back within 5 s."""


class MigrationError(Exception):
    """The migration failed; one line, for a person. The guest is where and as it was."""


class MigrationCancelledError(MigrationError):
    """Somebody called `cancel`."""


@dataclass(frozen=True)
class SendParameters:
    """`max_bandwidth` in bytes a second (None: no limit), `downtime_limit` in seconds.

    `workers`: processes that scan and encode beside the transport process; 0: it does that itself;
    None: what the machine bears.
    `return_path`: ask the destination to answer, where the channel goes both ways.
    `xbzrle`: send pages as differences, from a cache of `xbzrle_cache_size` bytes (None: 64 MiB, or
    all RAM where that is less). `compress`: `none`, `zstd[:LEVEL]` or `adaptive`.
    """

    max_bandwidth: int | None = None
    downtime_limit: float = 0.3
    workers: int | None = None
    return_path: bool = True
    xbzrle: bool = False
    xbzrle_cache_size: int | None = None
    compress: str = "none"


class Sender:
    """One outgoing migration of `guest` to `uri`; `run` it once.

    Raises CacheSizeError where no XBZRLE cache can have the size asked for, and CompressionError.
    """

    def __init__(self, guest: Guest, uri: str, parameters: SendParameters | None = None) -> None:
        self._guest = guest
        self._uri = uri
        self._parameters = parameters or SendParameters()
        self._total = sum(block.length for block in guest.blocks)
        cache = self._cache_pages(self._parameters.xbzrle_cache_size)
        self.states = StateMachine()
        self._cancel_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._crew = Crew(self._cancel_fd, self._check_cancel)
        self._compression = parse_compression(self._parameters.compress)
        self._processes = Processes(guest, self._workers(), self._crew, self._compression)
        self._processes.limits.set("max_bandwidth", self._parameters.max_bandwidth or 0)
        self._processes.limits.set("xbzrle_cache", cache if self._parameters.xbzrle else 0)
        self._channel: Channel | None = None
        self._on_progress: Callable[[Figures], None] = lambda _: None
        self._paused_here = False
        self._cancel_asked = False
        self._committed = False
        self._convergence = Convergence(self._total, self._parameters.downtime_limit)
        self._meter = Meter()
        self._round = 0
        self._scanned_before = 0
        self._xbzrle_rounds = XbzrleRounds()

    def cancel(self) -> None:
        """Stop as soon as may be; from any thread or signal handler. Too late once handed over."""
        self._cancel_asked = True
        if self._cancel_fd >= 0:
            os.eventfd_write(self._cancel_fd, 1)

    def set_max_bandwidth(self, limit: int | None) -> None:
        """Change the limit, in bytes a second (None: no limit), of the running migration."""
        self._processes.limits.set("max_bandwidth", limit or 0)

    def set_xbzrle_cache_size(self, size: int) -> None:
        """Change the XBZRLE cache, in bytes, from the next round on. Raises CacheSizeError."""
        pages = self._cache_pages(size)
        if self._parameters.xbzrle:
            self._processes.limits.set("xbzrle_cache", pages)

    def _workers(self) -> int:
        """Compression is worth a process on each processor."""
        if self._parameters.workers is not None:
            return self._parameters.workers
        return default_workers() if self._compression is None else processors()

    def _cache_pages(self, size: int | None) -> int:
        ram = max(self._total, self._guest.machine.page_size)
        wanted = min(DEFAULT_SIZE, ram) if size is None else size
        return cache_pages(wanted, self._guest.machine.page_size, ram)

    def run(self, on_progress: Callable[[Figures], None] | None = None) -> Figures:
        """Migrate. Raises MigrationError when the guest stays here; then it is as it was before."""
        self._on_progress = on_progress or self._on_progress
        try:
            with self._crew.reasons():
                self._migrate()
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, (ChannelError, UriError, GuestError, CrewError)):
                raise MigrationError(str(error)) from error
            raise
        finally:
            final = self.figures()
            self._release()
        self._on_progress(final)
        return final

    def _migrate(self) -> None:
        blockers = self._guest.blockers
        if blockers:
            raise MigrationError(f"the guest cannot migrate: {'; '.join(blockers)}")
        uri = parse_uri(self._uri)
        self.states.to(MigrationStatus.SETUP)
        self._channel = connect(uri)
        return_path = self._parameters.return_path and self._channel.bidirectional
        # Ids, names and what goes before RAM do not change while the guest runs.
        state = self._guest.save_devices()
        self._processes.start(state.ram_section_id, self._channel, return_path=return_path)
        self._meter.begin("total")
        self._meter.begin("setup")
        self._crew.on_tick = self._tick
        self._processes.write(stream.opening(self._guest, state, return_path))
        # Workers have rings of their own: their first slot must not overtake this.
        self._processes.flush()
        self._meter.end("setup")
        self.states.to(MigrationStatus.ACTIVE)
        self._send_ram()
        self._hand_over(return_path)
        self._meter.end("downtime")
        self._meter.end("total")
        self.states.to(MigrationStatus.COMPLETED)

    def _send_ram(self) -> None:
        """Rounds while the guest runs, then the last one on a paused guest."""
        while self._guest.running and not self._convergence.should_switch_over(
            self._meter.bandwidth
        ):
            self._send_round(tracked=True)
        self._meter.begin("downtime")
        if self._guest.running:
            self._guest.pause()
            self._paused_here = True
            self._processes.limits.set("max_bandwidth", 0)
        self._send_round(tracked=False)

    def _send_round(self, *, tracked: bool) -> None:
        page_size = self._guest.machine.page_size
        self._scanned_before = self._processes.scanned("scanned")
        found_before, sent_before = self._pages_found(), self._processes.sent("transferred")
        self._meter.begin("round")
        self._processes.start_round(StartRound(self._round, tracked))
        self._crew.wait_for(RoundSent)
        self._meter.end("round")
        self._window()
        found = self._pages_found() - found_before
        seconds = self._meter.milliseconds("round") / 1000
        sent = self._processes.sent("transferred") - sent_before
        self._convergence.round_done(Round(self._round, found * page_size, sent, seconds))
        self._xbzrle_rounds.round_done(self._processes.scanned, found, page_size)
        self._round += 1

    def _hand_over(self, return_path: bool) -> None:
        """Device state and the end of the stream; from `commit` on, the guest may run there."""
        state = self._guest.save_devices()
        self._processes.write(stream.ram_end(state))
        self._processes.write(stream.devices(state))
        self._processes.flush()
        self._guest.commit()
        self._committed = True
        self._close_stream(stream.closing(state), return_path)
        assert self._channel is not None
        # A destination that has answered starts the guest when it sees this.
        self._channel.close()

    def _close_stream(self, closing: bytes, return_path: bool) -> None:
        """The last bytes, and what the destination says to them."""
        try:
            self._processes.write(closing)
            if not return_path:
                self._processes.flush()
                self._processes.command_transport(CloseChannel())
                self._crew.wait_for(Closed, REPLY_TIMEOUT)
                return
            self._wait_for_success()
        except DeathError as error:
            # Without the transport process the answer may come all the same; and what it says
            # decides where the guest runs.
            if not return_path or not self._read_success():
                raise error from None

    def _wait_for_success(self) -> None:
        message = None
        while message != Shut(0):
            message = self._crew.wait_for(ReturnPathMessage, REPLY_TIMEOUT).message

    def _read_success(self) -> bool:
        """Whether the destination says on the channel itself that it has the guest."""
        assert self._channel is not None
        reader, buffer = ReturnPathReader(), memoryview(bytearray(4096))
        deadline = time.monotonic() + LATE_REPLY_TIMEOUT
        while wait_readable([self._channel.fileno()], deadline - time.monotonic()):
            try:
                count = self._channel.recv_into(buffer)
            except ChannelError:
                return False
            if Shut(0) in reader.feed(bytes(buffer[:count])):
                return True
            if not count:
                break
        return False

    def _check_cancel(self) -> None:
        if self._cancel_asked and not self._committed:
            raise MigrationCancelledError("cancelled")

    def _give_up(self, error: BaseException) -> None:
        """Break the channel first, so that the other side cannot start, then let the guest run."""
        cancelled = isinstance(error, MigrationCancelledError)
        if self.states.state in (MigrationStatus.SETUP, MigrationStatus.ACTIVE) and cancelled:
            self.states.to(MigrationStatus.CANCELLING)
        self._crew.stop()
        if self._channel is not None:
            self._channel.abort()
        if self._paused_here:
            self._guest.resume()
        if self.states.state is MigrationStatus.CANCELLING:
            self.states.to(MigrationStatus.CANCELLED)
        elif self.states.state is not MigrationStatus.NONE:
            self.states.to(MigrationStatus.FAILED)

    def _release(self) -> None:
        self._crew.stop()
        self._processes.close()
        cancel_fd, self._cancel_fd = self._cancel_fd, -1
        os.close(cancel_fd)

    def _tick(self) -> None:
        self._window()
        self._on_progress(self.figures())

    def _window(self) -> None:
        self._meter.window(self._processes.sent("transferred"), self._processes.sent("busy_ns"))

    def _pages_found(self) -> int:
        kinds = ("normal", "duplicate", "xbzrle_pages", "unchanged")
        return sum(self._processes.scanned(kind) for kind in kinds)

    def _remaining(self) -> int:
        """Bytes not sent yet of this round: exact in round 0, a forecast in later ones."""
        if self.states.state is MigrationStatus.COMPLETED:
            return 0
        scanned = self._processes.scanned("scanned") - self._scanned_before
        part = 1 - scanned * self._guest.machine.page_size / max(self._total, 1)
        return round(self._convergence.expected_dirty * max(part, 0.0))

    def figures(self) -> Figures:
        """The state of things now."""
        page_size = self._guest.machine.page_size
        expected = self._convergence.expected_downtime(self._meter.bandwidth)
        return Figures(
            status=self.states.state,
            total=self._total,
            transferred=self._processes.sent("transferred"),
            remaining=self._remaining(),
            duplicate=self._processes.scanned("duplicate"),
            normal=self._processes.scanned("normal"),
            page_size=page_size,
            dirty_pages_rate=int(self._convergence.dirty_rate / page_size),
            dirty_sync_count=self._round,
            mbps=self._meter.mbps,
            setup_time=self._meter.milliseconds("setup"),
            expected_downtime=round(expected * 1000),
            downtime=self._meter.milliseconds("downtime"),
            total_time=self._meter.milliseconds("total"),
            xbzrle=self._xbzrle_figures(),
            compression=self._compression_figures(),
        )

    def _compression_figures(self) -> CompressionFigures | None:
        if self._compression is None:
            return None
        return CompressionFigures(
            method=str(self._compression),
            levels=self._processes.levels(),
            raw_size=self._processes.scanned("raw_bytes"),
            compressed_size=self._processes.scanned("compressed_bytes"),
        )

    def _xbzrle_figures(self) -> XbzrleFigures | None:
        if not self._parameters.xbzrle:
            return None
        scanned = self._processes.scanned
        return XbzrleFigures(
            cache_size=self._processes.limits["xbzrle_cache"] * self._guest.machine.page_size,
            bytes=scanned("xbzrle_bytes"),
            pages=scanned("xbzrle_pages"),
            cache_miss=scanned("cache_miss"),
            cache_miss_rate=self._xbzrle_rounds.cache_miss_rate,
            encoding_rate=self._xbzrle_rounds.encoding_rate,
            overflow=scanned("overflow"),
        )
