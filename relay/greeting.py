"""Agree on a new connection of the link: who is there, and which session it belongs to.

near                          far
HELLO (session, nonce)  --->
                        <---  CHALLENGE (nonce)
PROOF                   --->
                        <---  WELCOME (proof), OUTCOME (proof, fate) or REFUSED (reason)
"""

from __future__ import annotations

import hmac
import os
from typing import TypeVar

from ..protocol.formats.link import (
    Challenge,
    Hello,
    LinkError,
    Outcome,
    Proof,
    Record,
    Refused,
    Welcome,
    reason_of,
)
from ..protocol.wire.link import NONCE_SIZE, VERSION, Fate, Purpose
from .carrier import receive_record, send_record
from .proofs import far_proof, near_proof
from .sockets import Socket

GREETING = 10.0
"""Seconds that the other end has for each step."""

_R = TypeVar("_R", bound=Record)


class RefusedError(LinkError):
    """The far relay refused a connection, or this end refuses the far relay; one line."""


class EndedError(LinkError):
    """The far relay has ended the session; `fate`: what the destination has of the guest."""

    def __init__(self, fate: Fate, reason: str) -> None:
        super().__init__(reason)
        self.fate = fate


async def greet_far(
    sock: Socket, secret: bytes, session: bytes, number: int, connections: int, purpose: Purpose
) -> None:
    """Make a connection part of a session.

    Raises EndedError, RefusedError, LinkError, OSError, EOFError.
    """
    nonce = os.urandom(NONCE_SIZE)
    hello = Hello(VERSION, session, nonce, number, connections, purpose)
    await send_record(sock, hello)
    challenge = await _expect(sock, Challenge)
    _check_version(challenge.version, "far")
    await send_record(sock, Proof(near_proof(secret, hello, challenge.nonce)))
    answer = await _record(sock)
    if not isinstance(answer, (Welcome, Outcome)):
        raise _unexpected(answer, "Welcome")
    if not hmac.compare_digest(answer.proof, far_proof(secret, hello, challenge.nonce)):
        raise RefusedError("the far relay does not know the secret of this one")
    if isinstance(answer, Outcome):
        known = answer.fate in set(Fate)
        raise EndedError(Fate(answer.fate) if known else Fate.UNKNOWN, answer.reason)


async def greet_near(sock: Socket, secret: bytes) -> tuple[Hello, Welcome]:
    """Return what a near relay wants, once it has proved itself, and the answer that takes it in.

    The caller sends that answer, or calls `refuse` or `tell`. Raises LinkError, OSError, EOFError.
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


async def tell(sock: Socket, answer: Welcome, fate: Fate, reason: str) -> None:
    """Send, instead of an answer, what became of a session that has ended; close the connection."""
    await send_record(sock, Outcome(answer.proof, fate, reason_of(reason)))
    sock.close()


async def _expect(sock: Socket, kind: type[_R]) -> _R:
    record = await _record(sock)
    if not isinstance(record, kind):
        raise _unexpected(record, kind.__name__)
    return record


async def _record(sock: Socket) -> Record:
    record = await receive_record(sock)
    if isinstance(record, Refused):
        raise RefusedError(f"the far relay refuses: {record.reason}")
    return record


def _unexpected(record: Record, wanted: str) -> LinkError:
    return LinkError(f"{type(record).__name__} instead of {wanted} in the greeting")


def _check_version(version: int, side: str) -> None:
    if version != VERSION:
        raise RefusedError(f"the {side} relay speaks version {version}, this one {VERSION}")
