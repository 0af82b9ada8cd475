"""Parse migration URIs: `tcp:HOST:PORT unix:PATH exec:COMMAND fd:N file:PATH`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..protocol.errors import VmferryError


class UriError(VmferryError, ValueError):
    """A URI that cannot be used; the message is one line."""


class UnknownSchemeError(UriError):
    """A URI that begins with no known scheme."""


@dataclass(frozen=True)
class Tcp:
    """A TCP endpoint; an empty host means any address when listening. IPv6 in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@dataclass(frozen=True)
class Unix:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class Exec:
    """A shell command: its standard input takes, or its standard output gives, the stream."""

    command: str

    def __str__(self) -> str:
        return f"exec:{self.command}"


@dataclass(frozen=True)
class Fd:
    """A descriptor that this process inherited."""

    number: int

    def __str__(self) -> str:
        return f"fd:{self.number}"


@dataclass(frozen=True)
class File:
    """A file, from `offset` bytes on."""

    path: str
    offset: int = 0

    def __str__(self) -> str:
        return f"file:{self.path}" + (f",offset={self.offset}" if self.offset else "")


Uri: TypeAlias = Tcp | Unix | Exec | Fd | File


def parse_uri(text: str) -> Uri:
    """Return the parsed URI. Raises UriError with the reason."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in _PARSERS:
        known = " ".join(f"{name}:" for name in _PARSERS)
        hint = _meant(text)
        raise UnknownSchemeError(
            f"unknown migration URI {text!r}: it begins with none of {known}"
            + (f"; write {hint}" if hint else "")
        )
    if not rest:
        raise UriError(f"{text!r} says nothing behind {scheme}:")
    return _PARSERS[scheme](rest)


def _meant(text: str) -> str:
    """Return what the user may have meant by a URI without a scheme, or an empty string."""
    _, colon, port = text.rpartition(":")
    if colon and _is_port(port):
        return f"tcp:{text}"
    if "/" in text or ("." in text and not colon):
        return f"unix:{text} for a socket, file:{text} for a file"
    return ""


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65535


def _tcp(rest: str) -> Tcp:
    host, colon, port = rest.rpartition(":")
    if rest.startswith("//"):
        raise UriError(f"'tcp:{rest}' has slashes: write tcp:{rest.strip('/')}")
    if colon and port.isdigit() and not _is_port(port):
        raise UriError(f"'tcp:{rest}' is not tcp:HOST:PORT: ports end at 65535")
    if not colon or not _is_port(port):
        raise UriError(f"'tcp:{rest}' is not tcp:HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UriError(f"'tcp:{rest}': write an IPv6 address in brackets")
    return Tcp(host, int(port))


def _fd(rest: str) -> Fd:
    if not rest.isascii() or not rest.isdigit():
        raise UriError(f"'fd:{rest}' is not fd:NUMBER")
    return Fd(int(rest))


def _file(rest: str) -> File:
    path, comma, offset = rest.rpartition(",offset=")
    if not comma:
        return File(rest)
    try:
        value = int(offset, 0)
    except ValueError:
        value = -1
    if value < 0 or not path:
        raise UriError(f"'file:{rest}': the offset is not a number of bytes")
    return File(path, value)


_PARSERS: dict[str, Callable[[str], Uri]] = {
    "tcp": _tcp,
    "unix": Unix,
    "exec": Exec,
    "fd": _fd,
    "file": _file,
}
