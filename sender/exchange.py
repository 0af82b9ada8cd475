"""Define what coordinator and transport process send each other.

Rounds are commanded as the workers' are (`sources.StartRound`). `receiver.exchange` is the
counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.handover import Peer


@dataclass(frozen=True)
class RoundSent:
    """Report: every slot of this round was handed to the channel."""

    number: int


@dataclass(frozen=True)
class Flushed:
    """Report: everything that the coordinator wrote was handed to the channel."""


@dataclass(frozen=True)
class Greeted:
    """Report: the destination has answered HELLO, and with it everything before it."""

    peer: Peer


@dataclass(frozen=True)
class LetGo:
    """Command: everything except the end of the stream was sent; leave the channel to others."""


@dataclass(frozen=True)
class Released:
    """Report: this process has closed the channel.

    `answers` has bytes of the return path that were read but are not a whole message yet.
    """

    answers: bytes
