"""Open and use the channels of a migration: sockets, commands, descriptors and files."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import subprocess

from ..protocol.errors import VmferryError
from .pieces import drop_front
from .silence import silence
from .sockets import credentials_of_peer, reset_on_close
from .splice import Splice
from .unix_socket import UnixListener
from .uri import Exec, Fd, Tcp, Unix, Uri

CONNECT_TIMEOUT = 10.0
KEEPALIVE_IDLE = 20
"""Seconds without traffic on an idle TCP connection until the peer's host is probed.

A stopped process does not matter: its kernel answers.
"""
KEEPALIVE_INTERVAL = 5
"""Seconds between two probes of the peer's host."""
KEEPALIVE_PROBES = 6
"""Limit for probes without an answer, after which the host is given up: 50 seconds in all.

TCP_USER_TIMEOUT is not set: it also counts the time in which a live peer reads nothing (unlike
`silence`).
"""
BACKLOG = 256
"""Limit for the connections that wait to be accepted; a multifd source opens all of its at once."""
_CLOSED = "the other end closed the connection; its log says why"
_ENDED = "what reads it ended before it took all"


class ChannelError(VmferryError, OSError):
    """A channel that cannot be opened, broke, or whose command failed; the message is one line."""

    def __str__(self) -> str:
        return str(self.args[0])


class Channel:
    """An open channel to the other end of a migration.

    Each process that holds a duplicate may use it, but only one at a time.
    """

    def __init__(self, fd: int, name: str, command: subprocess.Popen[bytes] | None = None) -> None:
        mode = os.fstat(fd).st_mode
        self._fd = fd
        self.name = name
        self._command = command
        self._is_file = stat.S_ISREG(mode)
        self._socket: socket.socket | None = None
        self.answered = False
        """True if the other end has to answer; if it closes its side, that ends a wait to send."""
        if stat.S_ISSOCK(mode):
            self._socket = tuned(socket.socket(fileno=fd))
            self._socket.setblocking(True)

    @property
    def bidirectional(self) -> bool:
        """Return whether the other end can answer."""
        return self._socket is not None

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._fd

    def send(self, *pieces: memoryview, stop_fd: int | None = None) -> None:
        """Send all `pieces`, at most IOV_MAX of them.

        Raises ChannelError, or EOFError if `stop_fd` becomes readable meanwhile.
        """
        rest = [piece for piece in pieces if piece]
        while rest:
            try:
                drop_front(rest, self._send_some(rest, stop_fd))
            except BlockingIOError:
                self._wait_writable(stop_fd)
            except OSError as error:
                raise self._broken(error) from error

    def _send_some(self, pieces: list[memoryview], stop_fd: int | None) -> int:
        if self._socket is not None:
            return self._socket.sendmsg(pieces, (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if not self._is_file:
            self._wait_writable(stop_fd)
        return os.writev(self._fd, pieces)

    def _wait_writable(self, stop_fd: int | None) -> None:
        poll = select.poll()
        gone = select.POLLRDHUP if self.answered else 0
        poll.register(self._fd, select.POLLOUT | gone)
        if stop_fd is not None:
            poll.register(stop_fd, select.POLLIN)
        for fd, event in poll.poll():
            if fd == stop_fd:
                raise EOFError
            if event & gone and not event & select.POLLOUT:
                # The other end may have stopped reading, too, and then this would wait for ever.
                raise ChannelError(f"{self.name}: {_CLOSED}")

    def recv_into(self, *views: memoryview) -> int:
        """Read the available bytes, at least one, into `views` in turn; return how many.

        Returns 0 at the end of the channel. Raises ChannelError.
        """
        try:
            return os.readv(self._fd, views)
        except OSError as error:
            raise self._broken(error) from error

    def splice(self, pipe: Splice, most: int) -> int:
        """Move at most this many of the available bytes into the pipe; return how many.

        Returns 0 at the end of the channel. Raises ChannelError.
        """
        try:
            return pipe.take(self._fd, most)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> ChannelError:
        """Return the error to raise; where the other end is gone, it says where to look."""
        reason = error.strerror
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            reason = _ENDED if self._socket is None else f"{_CLOSED} ({reason})"
        return ChannelError(f"{self.name}: {reason}")

    @property
    def peer_process(self) -> int:
        """Return the process that listens at the other end of a Unix socket; 0 if not known."""
        if self._socket is None or self._socket.family != socket.AF_UNIX:
            return 0
        return credentials_of_peer(self._socket).pid

    def close(self) -> None:
        """Close the channel; raise ChannelError if the command behind it failed."""
        if self._fd >= 0:
            if self._is_file and os.get_blocking(self._fd):
                os.fsync(self._fd)
            self._close_descriptor()
        if self._command is not None:
            status, self._command = self._command.wait(), None
            if status:
                raise ChannelError(f"{self.name}: the command failed with status {status}")

    @property
    def silence(self) -> float:
        """Return the seconds for which the other host has owed an acknowledgement; 0 if none."""
        return 0.0 if self._socket is None else silence(self._socket)

    def drop(self) -> None:
        """Close this process's descriptor; the channel stays open for others that share it."""
        self._close_descriptor()

    def abort(self) -> None:
        """Break the channel.

        The other end notices once the last process that shares the channel has broken it.
        """
        if self._socket is not None and self._fd >= 0:
            # TCP distinguishes a connection that was reset from one that was closed, and so does
            # vmferry. Without a connection this option has no effect, and the other end knows
            # already.
            reset_on_close(self._socket)
        self._close_descriptor()
        if self._command is not None:
            command, self._command = self._command, None
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
            command.wait()

    def _close_descriptor(self) -> None:
        fd, self._fd = self._fd, -1
        if self._socket is not None:
            self._socket.close()
        elif fd >= 0:
            os.close(fd)


def tuned(sock: socket.socket) -> socket.socket:
    """Return the socket, set so that small messages leave at once and a dead host is noticed."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    return sock


def connect(uri: Uri) -> Channel:
    """Open a channel for sending. Raises ChannelError."""
    try:
        channel = _connect(uri)
        if stat.S_ISFIFO(os.fstat(channel.fileno()).st_mode):
            # A non-blocking pipe takes what it has room for, and `send` can be interrupted by
            # `stop_fd`.
            os.set_blocking(channel.fileno(), False)
        return channel
    except (OSError, UnicodeError, OverflowError) as error:
        raise _refused(uri, error) from error


def _refused(uri: Uri, error: Exception) -> ChannelError:
    """Return the ChannelError for a URI that cannot be opened.

    Names and numbers that the system cannot represent are reported like absent ones.
    """
    if isinstance(error, ChannelError):
        return error
    reason = error.strerror if isinstance(error, OSError) else None
    return ChannelError(f"{uri}: {reason or error}")


def _connect(uri: Uri) -> Channel:
    name = str(uri)
    if isinstance(uri, Tcp):
        sock = socket.create_connection((uri.host or "localhost", uri.port), CONNECT_TIMEOUT)
        return Channel(sock.detach(), name)
    if isinstance(uri, Unix):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(uri.path)
            return Channel(sock.detach(), name)
    if isinstance(uri, Exec):
        return _run(uri, sending=True)
    if isinstance(uri, Fd):
        return Channel(os.dup(uri.number), name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if uri.offset else os.O_TRUNC)
    fd = os.open(uri.path, flags, 0o600)
    if uri.offset:
        os.lseek(fd, uri.offset, os.SEEK_SET)
    return Channel(fd, name)


def _run(uri: Exec, *, sending: bool) -> Channel:
    """Start the command in a session of its own, so that all of its processes can be killed."""
    ours, theirs = os.pipe()
    if sending:
        ours, theirs = theirs, ours
    pipe = {"stdin" if sending else "stdout": theirs}
    if not sending:
        pipe["stdin"] = subprocess.DEVNULL
    shell = ["/bin/sh", "-c", uri.command]
    command = subprocess.Popen(shell, start_new_session=True, **pipe)  # type: ignore[call-overload]
    os.close(theirs)
    return Channel(ours, str(uri), command)


class Listener:
    """The endpoint at which a migration arrives; `Lobby` handles connections of others."""

    def __init__(
        self,
        uri: Uri,
        channel: Channel | None,
        sock: socket.socket | None,
        named: UnixListener | None = None,
    ) -> None:
        self._uri = uri
        self._channel = channel
        self._socket = sock
        self._named = named

    @property
    def address(self) -> str:
        """Return the URI, with the real port if port 0 was requested."""
        if isinstance(self._uri, Tcp) and self._socket is not None:
            return str(Tcp(self._uri.host, self._socket.getsockname()[1]))
        return str(self._uri)

    def fileno(self) -> int:
        """Return the descriptor that is readable once `accept` does not block."""
        if self._socket is not None:
            return self._socket.fileno()
        assert self._channel is not None
        return self._channel.fileno()

    @property
    def listens(self) -> bool:
        """Return whether several sources may connect; if not, there is one channel."""
        return self._socket is not None

    def accept(self) -> Channel:
        """Return a channel to read from: the only one, or that of the first connection."""
        if self._socket is None:
            assert self._channel is not None
            channel, self._channel = self._channel, None
            return channel
        self._socket.setblocking(True)
        return self.channel(self._socket.accept()[0])

    def accept_socket(self) -> socket.socket | None:
        """Return the socket of the next connection; None if it has closed again."""
        assert self._socket is not None
        self._socket.setblocking(False)
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return None

    def channel(self, sock: socket.socket) -> Channel:
        """Return a channel for a connection that was accepted here."""
        return Channel(sock.detach(), str(self._uri))

    def close(self) -> None:
        """Stop listening; an accepted channel stays open."""
        if self._socket is not None:
            if self._named is not None:
                self._named.close()
            self._socket.close()
            self._socket = None
        if self._channel is not None:
            self._channel.abort()
            self._channel = None


def listen(uri: Uri) -> Listener:
    """Return a listener that is ready to receive. Raises ChannelError."""
    try:
        return _listen(uri)
    except (OSError, UnicodeError, OverflowError) as error:
        raise _refused(uri, error) from error


def _listen(uri: Uri) -> Listener:
    if isinstance(uri, Tcp):
        family = socket.AF_INET6 if ":" in uri.host else socket.AF_INET
        address = (uri.host, uri.port)
        sock = socket.create_server(address, family=family, backlog=BACKLOG)
        return Listener(uri, None, sock)
    if isinstance(uri, Unix):
        named = UnixListener(uri.path, BACKLOG)
        return Listener(uri, None, named.socket, named)
    if isinstance(uri, Exec):
        return Listener(uri, _run(uri, sending=False), None)
    if isinstance(uri, Fd):
        return Listener(uri, Channel(os.dup(uri.number), str(uri)), None)
    # Opening a named pipe that has no writer would block; the listener waits for it instead.
    fd = os.open(uri.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    if uri.offset:
        os.lseek(fd, uri.offset, os.SEEK_SET)
    return Listener(uri, Channel(fd, str(uri)), None)
