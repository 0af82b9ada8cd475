"""Define which end holds a guest while its migration ends, as two tables of transitions.

The theory of operation is in docs/architecture.md ("The handover"). In short:

1. The source pauses the guest, sends the last pages, the devices and the end of the stream, and
   still holds the guest: whatever goes wrong, it lets the guest run again.
2. The destination has received everything, durably, and answers SHUT 0: "I have it whole". From
   then on it discards nothing, and starts the guest only when the source tells it to.
3. The source reads SHUT 0, gives the guest up for good, and sends PING(CONFIRM).
4. The destination lets the guest run and answers PONG(CONFIRM); or it answers SHUT 1 and never
   starts the guest.

Only QEMU's own messages are used. A stock QEMU answers PING(HELLO) with PONG(HELLO) alone; a
destination that waits for CONFIRM sends PONG(CONFIRMS) before it. A stock destination runs the
guest before it sends SHUT 0; a stock source closes the connection in order instead of confirming.

Only the source ever acts on a timeout, and only before the end of the stream is sent, or if the
destination is known to wait for CONFIRM. The tables do no I/O: `guest.handing` feeds them, and a
test walks through every state that the two ends, a link and their processes can reach.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import Generic, TypeVar


class Word(IntEnum):
    """Values of PING and PONG that carry the handover; a stock QEMU gives them no meaning."""

    HELLO = 0x766D6601
    """PING from the source that asks for an answer; every destination echoes the value."""
    CONFIRMS = 0x766D6602
    """PONG from the destination before it answers HELLO: it starts the guest only on CONFIRM."""
    CONFIRM = 0x766D6603
    """PING from the source: it gave the guest up, start it. PONG: the guest was started."""
    ABORT = 0x766D6604
    """PING from the source: the guest runs on at the source, discard the copy."""


class Peer(Enum):
    """The other end's part in a handover."""

    STOCK = 0
    """A stock QEMU, which follows QEMU's rules and uses no message of the handover but SHUT."""
    CONFIRMING = 1
    """A destination that waits for CONFIRM, or a source that sends it."""


class Source(Enum):
    """The states of a handover as seen by the source: which end holds the guest."""

    HOLDING = auto()
    """The guest is paused here and may be taken back; the destination waits for CONFIRM."""
    HOLDING_STOCK = auto()
    """The guest is paused here; a stock destination starts it unasked and then reports it."""
    HOLDING_ONE_WAY = auto()
    """The guest is paused here, and the destination cannot answer."""
    GIVEN = auto()
    """The destination has the whole guest and was asked to start it."""
    GONE = auto()
    """The guest runs at the destination, or, with a one-way link, is assumed to."""
    STAYED = auto()
    """The guest runs here again."""
    UNCONFIRMED = auto()
    """The guest was given up, and the link broke before the destination reported that it runs."""


class SourceEvent(Enum):
    """Events that a source handles after it has sent its last byte."""

    SHUT_OK = auto()
    SHUT_FAILED = auto()
    STARTED = auto()
    """PONG(CONFIRM) arrived: the destination has started the guest."""
    ALL_SENT = auto()
    """The last byte of the stream was handed to the channel."""
    LINK_LOST = auto()
    """The connection ended, broke, or carried bytes that are not a message."""
    TIMEOUT = auto()
    """The destination did not answer in time."""
    CANCEL = auto()
    """The user wants the guest back at the source."""
    ORPHANED = auto()
    """The command that controls the migration died."""
    LEAVE = auto()
    """The command cannot wait any longer."""


class SourceAction(Enum):
    """Actions that the table asks of a source."""

    GIVE_UP = auto()
    """Mark the guest so that it never runs at the source again by itself."""
    CONFIRM = auto()
    ABORT = auto()
    """Tell the destination, if it can be reached, that the guest runs on at the source."""
    BREAK = auto()
    """Reset the connection, so that a destination that has not started the guest never does."""
    RESUME = auto()
    """Let the guest run again at the source."""
    CLOSE = auto()


_S, _E, _A = Source, SourceEvent, SourceAction
# The destination starts on CONFIRM alone, so the guest need not wait for ABORT to arrive.
_TAKE_BACK = (_A.RESUME, _A.ABORT)
_TAKE_BACK_STOCK = (_A.BREAK, _A.RESUME)
SOURCE: dict[tuple[Source, SourceEvent], tuple[Source, tuple[SourceAction, ...]]] = {
    (_S.HOLDING, _E.SHUT_OK): (_S.GIVEN, (_A.GIVE_UP, _A.CONFIRM)),
    (_S.HOLDING, _E.SHUT_FAILED): (_S.STAYED, _TAKE_BACK),
    (_S.HOLDING, _E.LINK_LOST): (_S.STAYED, (_A.RESUME, _A.BREAK)),
    (_S.HOLDING, _E.TIMEOUT): (_S.STAYED, _TAKE_BACK),
    (_S.HOLDING, _E.CANCEL): (_S.STAYED, _TAKE_BACK),
    (_S.HOLDING, _E.ORPHANED): (_S.STAYED, _TAKE_BACK),
    (_S.HOLDING_STOCK, _E.SHUT_OK): (_S.GONE, (_A.GIVE_UP, _A.CLOSE)),
    (_S.HOLDING_STOCK, _E.SHUT_FAILED): (_S.STAYED, _TAKE_BACK_STOCK),
    (_S.HOLDING_STOCK, _E.LINK_LOST): (_S.STAYED, _TAKE_BACK_STOCK),
    (_S.HOLDING_STOCK, _E.CANCEL): (_S.STAYED, _TAKE_BACK_STOCK),
    (_S.HOLDING_ONE_WAY, _E.ALL_SENT): (_S.GONE, (_A.GIVE_UP, _A.CLOSE)),
    (_S.HOLDING_ONE_WAY, _E.LINK_LOST): (_S.STAYED, _TAKE_BACK_STOCK),
    (_S.HOLDING_ONE_WAY, _E.CANCEL): (_S.STAYED, _TAKE_BACK_STOCK),
    (_S.GIVEN, _E.STARTED): (_S.GONE, (_A.CLOSE,)),
    (_S.GIVEN, _E.SHUT_FAILED): (_S.STAYED, _TAKE_BACK),
    (_S.GIVEN, _E.LINK_LOST): (_S.UNCONFIRMED, (_A.CLOSE,)),
    (_S.GIVEN, _E.LEAVE): (_S.UNCONFIRMED, (_A.CLOSE,)),
}
"""Next state and actions of a source, by its state and the event; other pairs: no change."""


class Destination(Enum):
    """The states of a handover as seen by the destination: which end holds the guest."""

    PROMISED = auto()
    """The guest is whole and paused; SHUT 0 was sent or may have been."""
    PROMISED_STOCK = auto()
    """The guest is whole and paused; a stock source closes the connection after it read SHUT 0."""
    LOADED_ONE_WAY = auto()
    """The guest is whole and paused; the source gave it up and cannot be answered."""
    STARTING = auto()
    """Only the destination holds the guest, which is about to run."""
    RETURNING = auto()
    """SHUT 1 was sent: the guest never runs here; the source has not acknowledged it yet."""
    RUNS = auto()
    """The guest runs here, or is loaded and stopped if it was stopped before it migrated."""
    RETURNED = auto()
    """The source holds the guest; the copy was discarded."""
    KEPT = auto()
    """Neither end is known to hold the guest; the whole copy is kept here, paused."""


class DestinationEvent(Enum):
    """Events that a destination handles after it has the whole guest."""

    BEGIN = auto()
    """The guest was loaded; no step that can fail is left."""
    CONFIRM = auto()
    ABORT = auto()
    LEFT = auto()
    """The source closed the connection before SHUT 0 was sent."""
    CLOSED = auto()
    """The source closed the connection in an orderly way."""
    LINK_LOST = auto()
    """The connection broke."""
    MORE = auto()
    """The stream went on after its apparent end: the guest is not whole."""
    STARTED = auto()
    """The guest was started."""
    NOT_STARTED = auto()
    """The guest could not be started."""
    CANCEL = auto()
    """The user does not want the guest at the destination."""
    LEAVE = auto()
    """The command cannot wait any longer."""


class DestinationAction(Enum):
    """Actions that the table asks of a destination."""

    PROMISE = auto()
    """Send SHUT 0."""
    START = auto()
    """Complete the guest and let it run; then feed STARTED or NOT_STARTED."""
    SAY_STARTED = auto()
    """Send PONG(CONFIRM)."""
    REFUSE = auto()
    """Send SHUT 1."""
    DISCARD = auto()
    """Discard the copy of the guest."""
    KEEP = auto()
    """Leave the copy of the guest in place, for an administrator to recover."""
    CLOSE = auto()


_D, _F, _B = Destination, DestinationEvent, DestinationAction
DESTINATION: dict[
    tuple[Destination, DestinationEvent], tuple[Destination, tuple[DestinationAction, ...]]
] = {
    (_D.PROMISED, _F.BEGIN): (_D.PROMISED, (_B.PROMISE,)),
    (_D.PROMISED, _F.LEFT): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.PROMISED, _F.CONFIRM): (_D.STARTING, (_B.START,)),
    (_D.PROMISED, _F.ABORT): (_D.RETURNED, (_B.DISCARD, _B.CLOSE)),
    (_D.PROMISED, _F.CLOSED): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.PROMISED, _F.LINK_LOST): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.PROMISED, _F.MORE): (_D.KEPT, (_B.REFUSE, _B.KEEP, _B.CLOSE)),
    (_D.PROMISED, _F.CANCEL): (_D.RETURNING, (_B.REFUSE,)),
    (_D.PROMISED, _F.LEAVE): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.PROMISED_STOCK, _F.BEGIN): (_D.PROMISED_STOCK, (_B.PROMISE,)),
    (_D.PROMISED_STOCK, _F.LEFT): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.PROMISED_STOCK, _F.CLOSED): (_D.STARTING, (_B.START,)),
    (_D.PROMISED_STOCK, _F.MORE): (_D.KEPT, (_B.REFUSE, _B.KEEP, _B.CLOSE)),
    (_D.PROMISED_STOCK, _F.LINK_LOST): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.PROMISED_STOCK, _F.LEAVE): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.LOADED_ONE_WAY, _F.BEGIN): (_D.STARTING, (_B.START,)),
    (_D.STARTING, _F.STARTED): (_D.RUNS, (_B.SAY_STARTED, _B.CLOSE)),
    (_D.STARTING, _F.NOT_STARTED): (_D.KEPT, (_B.REFUSE, _B.KEEP, _B.CLOSE)),
    (_D.RETURNING, _F.ABORT): (_D.RETURNED, (_B.DISCARD, _B.CLOSE)),
    (_D.RETURNING, _F.CLOSED): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.RETURNING, _F.LINK_LOST): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
    (_D.RETURNING, _F.LEAVE): (_D.KEPT, (_B.KEEP, _B.CLOSE)),
}
"""Next state and actions of a destination, by its state and the event; other pairs: no change."""

State = TypeVar("State")
Event = TypeVar("Event")
Action = TypeVar("Action")


class Handover(Generic[State, Event, Action]):
    """One end of a handover: its state, and the table that says how events change it."""

    def __init__(
        self, table: dict[tuple[State, Event], tuple[State, tuple[Action, ...]]], state: State
    ) -> None:
        self._table = table
        self.state = state

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Change the state as the table says, and return the actions to take, in order."""
        self.state, actions = self._table.get((self.state, event), (self.state, ()))
        return actions

    @property
    def over(self) -> bool:
        """Return whether no event can change the state any more."""
        return all(state is not self.state for state, _ in self._table)
