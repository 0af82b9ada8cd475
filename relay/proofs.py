"""Prove that both ends of a link know its secret, which itself never travels.

Each end sends an HMAC (RFC 2104, SHA-256) of both nonces and the session under the secret. The two
ends prove different texts, so neither can send back what it received. Without a secret the proofs
hold nothing that an eavesdropper would not know, but whoever only connects does not know the
session, and so cannot take it over.
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path

from ..protocol.errors import ParameterError
from ..protocol.formats.link import Hello

MIN_SECRET = 16
"""Limit for how short a secret may be, in bytes."""
_FAR, _NEAR = b"vmferry relay, far end", b"vmferry relay, near end"


def far_proof(secret: bytes, hello: Hello, nonce: bytes) -> bytes:
    """Return what a far relay sends to prove that it knows the secret; `nonce` is its own."""
    return _proof(secret, _FAR, hello, nonce)


def near_proof(secret: bytes, hello: Hello, nonce: bytes) -> bytes:
    """Return what a near relay sends to prove that it knows the secret; `nonce` is the other's."""
    return _proof(secret, _NEAR, hello, nonce)


def _proof(secret: bytes, side: bytes, hello: Hello, nonce: bytes) -> bytes:
    numbers = bytes([hello.number, hello.connections, hello.purpose])
    text = b"".join((side, hello.session, hello.nonce, nonce, numbers))
    return hmac.digest(secret, text, "sha256")


def read_secret(path: str) -> bytes:
    """Return the secret in a file, without white space around it. Raises ParameterError."""
    try:
        mode = os.stat(path).st_mode
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ParameterError(f"{path}: others may read this secret; chmod 600 it")
    if len(secret) < MIN_SECRET:
        raise ParameterError(
            f"{path}: the secret has {len(secret)} bytes, it needs at least {MIN_SECRET};"
            f" `openssl rand -hex 32 >{path}` makes one"
        )
    return secret
