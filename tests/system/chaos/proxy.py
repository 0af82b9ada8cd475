"""A proxy between two ends that sees the marks of a handover, and can be a bad link.

One thread moves all bytes, so that what happens at a mark happens exactly there: bytes before it
were passed, bytes behind it were not.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from vmferry.transport.sockets import reset_on_close

from .marks import AnswerMarks, Mark, StreamMarks

FORWARD, BACK = "forward", "back"
_PIECE = 1 << 16
_HEAD = 4
"""Bytes by which a stream says that it is one."""
_TICK = 0.01

OnMark = Callable[[str, bool], None]
"""Called with the name of a mark, and whether it is still to be passed."""


class Direction:
    """The bytes that go one way, and what holds them up."""

    def __init__(self, name: str, source: socket.socket, target: socket.socket) -> None:
        self.name, self.source, self.target = name, source, target
        self.marks: StreamMarks | AnswerMarks = StreamMarks() if name == FORWARD else AnswerMarks()
        self.waiting = bytearray()
        """Read, and not passed yet."""
        self.passed = 0
        self.cuts: list[tuple[int, int, str]] = []
        """Offset, 0 before or 1 behind the mark, and the mark's name, in order."""
        self.held_until = 0.0
        self.delay = 0.0
        self.stalled = self.swallows = self.source_ended = self.ended = False

    def feed(self, data: bytes) -> None:
        """Take bytes that arrived."""
        self.waiting += data
        for mark in self.marks.feed(data):
            self.cut(mark)

    def cut(self, mark: Mark) -> None:
        """Stop at both edges of a mark; where the first was passed already, at once."""
        edges = ((max(mark.start, self.passed), 0, mark.name), (mark.end, 1, mark.name))
        self.cuts = sorted([*self.cuts, *edges])

    @property
    def free(self) -> bool:
        """Return whether bytes may pass now."""
        return not self.ended and not self.stalled and time.monotonic() >= self.held_until

    def room(self) -> int:
        """Return how many bytes may pass before something has to happen."""
        end = self.cuts[0][0] - self.passed if self.cuts else len(self.waiting)
        return min(end, len(self.waiting), _PIECE)


class Proxy:
    """Listens at `address` for one source, and connects to `target` when it arrives."""

    def __init__(self, target: str | tuple[str, int], on_mark: OnMark) -> None:
        self._target = target
        self._on_mark = on_mark
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self._positions: list[tuple[int, str]] = []
        self._ways: tuple[Direction, ...] = ()
        self._asked: deque[Callable[[Proxy], None]] = deque()
        self._closing = threading.Event()
        self.connected = self.over = False
        """True once a source has connected; `over`: true once that connection is gone."""
        self.stirred = time.monotonic()
        """Time at which something passed last, or the connection changed."""
        self.events: list[tuple[float, str]] = []
        self.thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)

    @property
    def begun(self) -> bool:
        """Return whether the destination has seen that a source is there; if not, it waits for
        another.
        """
        return bool(self._ways) and self._ways[0].passed >= _HEAD

    def start(self) -> None:
        """Begin to listen."""
        self.thread.start()

    def mark_position(self, offset: int, name: str) -> None:
        """Make a mark of a place in the stream; before the source arrives."""
        self._positions.append((offset, name))

    def _note(self, what: str) -> None:
        self.stirred = time.monotonic()
        self.events.append((self.stirred, what))

    def _run(self) -> None:
        self._server.settimeout(0.1)
        source = None
        while source is None and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                source, _ = self._server.accept()
        self._server.close()
        if source is None:
            self.over = True
            return
        try:
            target = self._connect()
        except OSError as error:
            self._note(f"no destination: {error.strerror}")
            reset_on_close(source)
            source.close()
            self.over = True
            return
        self._ways = (Direction(FORWARD, source, target), Direction(BACK, target, source))
        for offset, name in self._positions:
            self._ways[0].cut(Mark(name, offset, offset))
        for end in (source, target):
            end.setblocking(False)
        self.connected = True
        self._note("connected")
        self._on_mark("connected", False)
        self._move()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, tuple):
            sock = socket.create_connection(self._target)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._target)
        except OSError:
            sock.close()
            raise
        return sock

    def _move(self) -> None:
        while not self.over:
            if self._closing.is_set():
                self.cut(reset=True)
                return
            while self._asked:
                self._asked.popleft()(self)
            try:
                moved = [self._step(way) for way in self._ways if not self.over]
            except OSError as error:
                self._note(f"broken: {error.strerror}")
                self.cut(reset=True)
                return
            if self.over:
                return
            if all(way.ended for way in self._ways):
                self._close()
            elif not any(moved):
                self._wait()

    def _wait(self) -> None:
        """Wait until something can move, or for a tick."""
        poll = select.poll()
        wanted: dict[int, int] = {}
        for way in self._ways:
            if not way.free:
                continue
            if way.waiting:
                fd = way.target.fileno()
                wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
            elif not way.source_ended:
                fd = way.source.fileno()
                wanted[fd] = wanted.get(fd, 0) | select.POLLIN
        for fd, events in wanted.items():
            poll.register(fd, events)
        poll.poll(_TICK * 1000)

    def _step(self, way: Direction) -> bool:
        """Read, pass, and do what is due at marks; whether anything moved."""
        if not way.free or self.over:
            return False
        if way.cuts and way.cuts[0][0] <= way.passed:
            _, side, name = way.cuts.pop(0)
            self._note(f"{name} {'passed' if side else 'arrives'}")
            self._on_mark(name, side == 0)
            return True
        if not way.waiting and not way.source_ended:
            # What it brings may be held up.
            return self._read(way)
        if way.room():
            return self._pass(way)
        if way.source_ended and not way.waiting:
            self._end(way)
            return True
        return False

    def _read(self, way: Direction) -> bool:
        try:
            data = way.source.recv(_PIECE)
        except BlockingIOError:
            return False
        if data:
            way.feed(data)
            # A mark is noted when it passes, so the delay comes before that.
            way.held_until = max(way.held_until, time.monotonic() + way.delay)
        else:
            way.source_ended = True
            self._note(f"{way.name}: closed")
            self._on_mark(f"{way.name} closed", True)
        return True

    def _pass(self, way: Direction) -> bool:
        room = way.room()
        try:
            sent = room if way.swallows else way.target.send(way.waiting[:room])
        except BlockingIOError:
            return False
        del way.waiting[:sent]
        way.passed += sent
        self.stirred = time.monotonic()
        return True

    def _end(self, way: Direction) -> None:
        way.ended = True
        if not way.swallows:
            way.target.shutdown(socket.SHUT_WR)
        self._note(f"{way.name}: end passed")
        self._on_mark(f"{way.name} closed", False)

    def _close(self) -> None:
        self.over = True
        for way in self._ways:
            way.source.close()
        self._note("closed")

    def ask(self, deed: Callable[[Proxy], None]) -> None:
        """Have the thread that moves bytes do this, as soon as may be."""
        self._asked.append(deed)

    # What a link may do; only from `on_mark`, or by `ask`.

    def hold(self, direction: str, seconds: float) -> None:
        """Pass nothing for a while."""
        for way in self._chosen(direction):
            way.held_until = time.monotonic() + seconds

    def slow(self, direction: str, seconds: float) -> None:
        """Wait before each piece from now on."""
        for way in self._chosen(direction):
            way.delay = seconds

    def stall(self, direction: str) -> None:
        """Read and pass nothing any more, and keep the connection."""
        for way in self._chosen(direction):
            way.stalled = True

    def swallow(self, direction: str) -> None:
        """Read on and pass nothing any more, and keep the connection."""
        for way in self._chosen(direction):
            way.swallows = True

    def half_close(self, direction: str) -> None:
        """Tell the one end that the other has closed; what it still sends that way is lost."""
        for way in self._chosen(direction):
            if not way.ended:
                way.target.shutdown(socket.SHUT_WR)
                way.swallows = True

    def cut(self, *, reset: bool) -> None:
        """Close both connections, in an orderly way or not."""
        if self.over or not self._ways:
            return
        self.over = True
        self._note("cut: reset" if reset else "cut: close")
        for way in self._ways:
            if reset:
                reset_on_close(way.source)
            way.source.close()

    def _chosen(self, direction: str) -> list[Direction]:
        return [way for way in self._ways if direction in (way.name, "both")]

    def close(self) -> None:
        """End the proxy, and with it a connection that is still there, by a reset."""
        self._closing.set()
        self.thread.join(10)
