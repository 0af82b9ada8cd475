"""The handover: which end holds a guest while its migration ends, as two tables of transitions.

The theory of operation stands in docs/architecture.md ("The handover"). In short:

1. The source pauses the guest, sends the last pages, the devices and the end of the stream, and
   still holds the guest: whatever goes wrong, it lets the guest run again.
2. The destination has everything on hand, durable, and answers SHUT 0: "I have it whole". From then
   on it throws nothing away, and starts the guest only on the source's word.
3. The source reads SHUT 0, gives the guest up for good, and sends PING(CONFIRM).
4. The destination lets the guest run and answers PONG(CONFIRM); or SHUT 1, and then never will.

Nothing but QEMU's own messages is used. A stock QEMU answers PING(HELLO) with PONG(HELLO) alone;
a destination that waits for CONFIRM sends PONG(CONFIRMS) before it. A stock destination runs the
guest before it sends SHUT 0; a stock source closes the connection in order instead of confirming.

Only the source ever acts on a timeout, and only before the end of the stream is sent, or where the
destination is known to wait for CONFIRM. The tables have no input or output: `guest.handing` feeds
them, and a test walks through every state that both of them, a link and their processes can reach.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto
from typing import Generic, TypeVar


class Word(IntEnum):
    """Values of PING and PONG that carry the handover; to a stock QEMU they mean nothing."""

    HELLO = 0x766D6601
    """From the source: are you there? Every destination answers with the same value."""
    CONFIRMS = 0x766D6602
    """From the destination, before it answers HELLO: it starts the guest on CONFIRM alone."""
    CONFIRM = 0x766D6603
    """From the source: the guest is given up here, start it. The answer: it was started."""
    ABORT = 0x766D6604
    """From the source: the guest runs on here, throw your copy away."""


class Peer(Enum):
    """How the other end takes part in a handover."""

    STOCK = 0
    """It follows QEMU's rules and knows no word but SHUT."""
    CONFIRMING = 1
    """It waits for CONFIRM (a destination), or sends it (a source)."""


class Source(Enum):
    """Who holds the guest, as its source sees it."""

    HOLDING = auto()
    """The guest is paused here and may be taken back; the destination waits for CONFIRM."""
    HOLDING_STOCK = auto()
    """The guest is paused here; a stock destination starts it without asking, then says so."""
    HOLDING_ONE_WAY = auto()
    """The guest is paused here, and the destination cannot answer."""
    GIVEN = auto()
    """The destination has the guest whole and was asked to start it."""
    GONE = auto()
    """The guest runs at the destination, or may as far as anybody can know who cannot ask."""
    STAYED = auto()
    """The guest runs here again."""
    UNCONFIRMED = auto()
    """The guest was given up, and the link broke before the destination said that it runs."""


class SourceEvent(Enum):
    """News that reach a source behind its last byte."""

    SHUT_OK = auto()
    SHUT_FAILED = auto()
    STARTED = auto()
    """PONG(CONFIRM)."""
    ALL_SENT = auto()
    """The last byte of the stream was handed to the channel."""
    LINK_LOST = auto()
    """The connection ended, broke, or brought what is no message."""
    TIMEOUT = auto()
    """The destination has not answered for long enough."""
    CANCEL = auto()
    """Somebody wants the guest back."""
    ORPHANED = auto()
    """The command that led the migration died."""
    LEAVE = auto()
    """The command cannot wait any longer."""


class SourceAction(Enum):
    """Duties of a source, in the order of the table."""

    GIVE_UP = auto()
    """Mark the guest: it never runs here by itself again."""
    CONFIRM = auto()
    ABORT = auto()
    """Tell the destination, if it can be told, that the guest runs on here."""
    BREAK = auto()
    """Reset the connection, so that a destination that was not yet started is not."""
    RESUME = auto()
    """Let the guest run again."""
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
"""What a source does about news, by its state; what is not here changes nothing."""


class Destination(Enum):
    """Who holds the guest, as its destination sees it."""

    PROMISED = auto()
    """The guest is whole and paused; SHUT 0 was sent or may have been."""
    PROMISED_STOCK = auto()
    """Likewise; a stock source closes the connection once it has read SHUT 0."""
    LOADED_ONE_WAY = auto()
    """The guest is whole and paused; its source cannot be answered and has given it up."""
    STARTING = auto()
    """The guest is this end's alone and about to run."""
    RETURNING = auto()
    """SHUT 1 was sent: the guest never runs here; the source has not said that it knows."""
    RUNS = auto()
    """The guest runs here, or would, had it not been stopped before it migrated."""
    RETURNED = auto()
    """The source has the guest; the copy was thrown away."""
    KEPT = auto()
    """Nobody can say who has the guest; the copy is whole, paused, and kept."""


class DestinationEvent(Enum):
    """News that reach a destination behind its promise."""

    BEGIN = auto()
    """The guest was loaded; nothing is left that can fail."""
    CONFIRM = auto()
    ABORT = auto()
    LEFT = auto()
    """The source closed the connection before it was promised anything."""
    CLOSED = auto()
    """The source closed the connection in an orderly way."""
    LINK_LOST = auto()
    """The connection broke."""
    MORE = auto()
    """The stream went on behind what had looked like its end: the guest is not whole."""
    STARTED = auto()
    """The guest was let go."""
    NOT_STARTED = auto()
    """The guest could not be let go."""
    CANCEL = auto()
    """Somebody does not want the guest here."""
    LEAVE = auto()
    """The command cannot wait any longer."""


class DestinationAction(Enum):
    """Duties of a destination, in the order of the table."""

    PROMISE = auto()
    """Send SHUT 0."""
    START = auto()
    """Complete the guest and let it run; then feed STARTED or NOT_STARTED."""
    SAY_STARTED = auto()
    """Send PONG(CONFIRM)."""
    REFUSE = auto()
    """Send SHUT 1."""
    DISCARD = auto()
    """Throw the copy away."""
    KEEP = auto()
    """Leave the copy where it is, for a person to take up."""
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
"""What a destination does about news, by its state; what is not here changes nothing."""

State = TypeVar("State")
Event = TypeVar("Event")
Action = TypeVar("Action")


class Handover(Generic[State, Event, Action]):
    """One end of a handover: its state, and what news make of it."""

    def __init__(
        self, table: dict[tuple[State, Event], tuple[State, tuple[Action, ...]]], state: State
    ) -> None:
        self._table = table
        self.state = state

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Change the state as the table says, and return what is to be done, in order."""
        self.state, actions = self._table.get((self.state, event), (self.state, ()))
        return actions

    @property
    def over(self) -> bool:
        """Whether no news can change the state any more."""
        return all(state is not self.state for state, _ in self._table)
