"""Agree on a new connection of the link: who is there, and which session it belongs to.

near                          far
HELLO (session, nonce)  --->
                        <---  CHALLENGE (nonce, proof)
PROOF                   --->
                        <---  WELCOME, or REFUSED (reason)
"""

from __future__ import annotations

import hmac
import os
from typing import TypeVar

from ..protocol.formats.link import (
    Challenge,
    Hello,
    LinkError,
    Proof,
    Record,
    Refused,
    Welcome,
    reason_of,
)
from ..protocol.wire.link import NONCE_SIZE, VERSION
from .carrier import receive_record, send_record
from .proofs import far_proof, near_proof
from .sockets import Socket

GREETING = 10.0
"""Seconds that the other end has for each step."""

_R = TypeVar("_R", bound=Record)


class RefusedError(LinkError):
    """The far relay refused a connection, or this end refuses the far relay; one line."""


async def greet_far(
    sock: Socket, secret: bytes, session: bytes, number: int, connections: int, *, resumes: bool
) -> None:
    """Make a connection part of a session. Raises RefusedError, LinkError, OSError, EOFError."""
    nonce = os.urandom(NONCE_SIZE)
    hello = Hello(VERSION, session, nonce, number, connections, int(resumes))
    await send_record(sock, hello)
    challenge = await _expect(sock, Challenge)
    _check_version(challenge.version, "far")
    await send_record(sock, Proof(near_proof(secret, hello, challenge.nonce)))
    answer = await _expect(sock, Welcome)
    if not hmac.compare_digest(answer.proof, far_proof(secret, hello, challenge.nonce)):
        raise RefusedError("the far relay does not know the secret of this one")


async def greet_near(sock: Socket, secret: bytes) -> tuple[Hello, Welcome]:
    """Return what a near relay wants, once it has proved itself, and the answer that takes it in.

    The caller sends that answer, or calls `refuse`. Raises LinkError, OSError, EOFError.
    """
    hello = await _expect(sock, Hello)
    _check_version(hello.version, "near")
    nonce = os.urandom(NONCE_SIZE)
    await send_record(sock, Challenge(VERSION, nonce))
    proof = await _expect(sock, Proof)
    if not hmac.compare_digest(proof.proof, near_proof(secret, hello, nonce)):
        reason = "the near relay does not know the secret of this one"
        await refuse(sock, reason)
        raise LinkError(reason)
    return hello, Welcome(far_proof(secret, hello, nonce))


async def refuse(sock: Socket, reason: str) -> None:
    """Send the reason why a connection is refused, and close it."""
    await send_record(sock, Refused(reason_of(reason)))
    sock.close()


async def _expect(sock: Socket, kind: type[_R]) -> _R:
    record = await receive_record(sock)
    if isinstance(record, Refused):
        raise RefusedError(f"the far relay refuses: {record.reason}")
    if not isinstance(record, kind):
        raise LinkError(f"{type(record).__name__} instead of {kind.__name__} in the greeting")
    return record


def _check_version(version: int, side: str) -> None:
    if version != VERSION:
        raise RefusedError(f"the {side} relay speaks version {version}, this one {VERSION}")
