"""The handover walked through exhaustively: every state that two ends and a link can reach (law 5).

A plain breadth-first search over the tables of `protocol.handover`. A world is what both ends hold:
each side's state and the duties that are left of its last step, whether its guest runs, whether
the process that holds the guest and the one that leads the migration live, and what is under way on
the link. Everything that can happen happens at every moment: bytes arrive, the link is cut with any
part of them lost, a process is killed between any two duties, somebody cancels, a timeout ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from vmferry.protocol.handover import (
    DESTINATION,
    SOURCE,
    Destination,
    DestinationAction,
    DestinationEvent,
    Handover,
    Source,
    SourceAction,
    SourceEvent,
)

S, SE, SA = Source, SourceEvent, SourceAction
D, DE, DA = Destination, DestinationEvent, DestinationAction

TO_DESTINATION = {"CONFIRM": DE.CONFIRM, "ABORT": DE.ABORT, "FIN": DE.CLOSED, "RST": DE.LINK_LOST}
TO_SOURCE = {
    "SHUT 0": SE.SHUT_OK,
    "SHUT 1": SE.SHUT_FAILED,
    "PONG": SE.STARTED,
    "FIN": SE.LINK_LOST,
    "RST": SE.LINK_LOST,
}


@dataclass(frozen=True)
class End:
    """One side. `holder`, `leader`: whether these processes live. `seen`: messages looked at.

    `ran`: the guest was let run here; who kills it then kills the guest, and nothing else.
    """

    state: Source | Destination | None
    duties: tuple[SourceAction | DestinationAction, ...] = ()
    runs: bool = False
    ran: bool = False
    holder: bool = True
    leader: bool = True
    seen: int = 0
    given: bool = False
    closed: bool = False
    left: bool = False


@dataclass(frozen=True)
class World:
    """Both ends, and the messages on their way; what was seen stays there, as on a real channel.

    `whole`: the end of the stream was sent. `cut`: the link was, and what it lost is gone.
    """

    source: End
    destination: End
    there: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    whole: bool = False
    cut: bool = False


class Ends:
    """Ends that a kind of world can reach; `stock`: the end that is a stock QEMU, if any."""

    def __init__(self, stock: str) -> None:
        self.stock = stock

    def begin(self) -> World:
        return World(End(S.HOLDING if self.stock == "none" else S.HOLDING_STOCK), End(None))

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield from self.source_steps(world)
        yield from self.destination_steps(world)
        if not world.cut:
            for there in range(len(world.there) - world.destination.seen + 1):
                for back in range(len(world.back) - world.source.seen + 1):
                    yield (
                        "the link is cut",
                        replace(
                            world,
                            cut=True,
                            there=(*world.there[: world.destination.seen + there], "RST"),
                            back=(*world.back[: world.source.seen + back], "RST"),
                        ),
                    )

    # The source.

    def source_steps(self, world: World) -> Iterator[tuple[str, World]]:
        end = world.source
        if not end.holder and not (end.leader and world.whole):
            return
        if end.duties:
            yield f"source: {end.duties[0].name}", self.source_duty(world)
        elif not world.whole:
            yield "the source sends the end", self.tell(replace(world, whole=True), "END")
        elif end.seen < len(world.back):
            message = world.back[end.seen]
            seen = replace(world, source=replace(end, seen=end.seen + 1))
            yield f"source reads {message}", self.feed_source(seen, TO_SOURCE[message])
        alone = end.holder and not (end.duties or end.leader or end.given or end.runs)
        if alone and Handover(SOURCE, self.state_of(end)).over:
            # A guest that nobody leads and nobody has given up runs.
            runs = replace(world, source=replace(end, runs=True, ran=True))
            yield "source: runs by itself", runs
        if end.holder and not end.duties:
            yield "source: cancel", self.feed_source(world, SE.CANCEL)
            if world.whole:
                yield "source: timeout", self.feed_source(world, SE.TIMEOUT)
            left = self.feed_source(world, SE.LEAVE)
            if left != world:
                yield "source: leave", replace(left, source=replace(left.source, left=True))
        yield from self.source_deaths(world)

    def source_deaths(self, world: World) -> Iterator[tuple[str, World]]:
        end = world.source
        if end.leader and end.holder:
            orphan = replace(world, source=replace(end, leader=False))
            yield "source's leader is killed", self.feed_source(orphan, SE.ORPHANED)
        if end.leader and not end.holder:
            yield (
                "source's leader is killed",
                self.hang_up(replace(world, source=replace(end, leader=False, duties=()))),
            )
        if end.holder:
            dead = replace(end, holder=False, runs=False, duties=())
            if end.leader and world.whole:
                # The leader reads everything again, for a guest that cannot run here any more.
                first = self.begin().source.state
                yield (
                    "source's holder is killed",
                    replace(world, source=replace(dead, state=first, seen=0)),
                )
            else:
                yield "source's holder is killed", self.hang_up(replace(world, source=dead))

    def state_of(self, end: End) -> Source:
        assert isinstance(end.state, Source)
        return end.state

    def feed_source(self, world: World, event: SourceEvent) -> World:
        end = world.source
        if end.duties:
            return world
        assert isinstance(end.state, Source)
        machine = Handover(SOURCE, end.state)
        duties = machine.feed(event)
        return replace(world, source=replace(end, state=machine.state, duties=duties))

    def source_duty(self, world: World) -> World:
        end = world.source
        duty, rest = end.duties[0], end.duties[1:]
        world = replace(world, source=replace(end, duties=rest))
        if duty is SA.GIVE_UP:
            world = replace(world, source=replace(world.source, given=True))
        elif duty is SA.CONFIRM:
            world = self.tell(world, "CONFIRM")
        elif duty is SA.ABORT and end.holder:
            # In the middle of the stream there is no place for a word.
            world = self.tell(world, "ABORT") if world.whole else self.hang_up(world, "RST")
        elif duty is SA.BREAK:
            world = self.hang_up(world, "RST")
        elif duty is SA.RESUME and end.holder:
            world = replace(world, source=replace(world.source, runs=True, ran=True))
        assert isinstance(end.state, Source)
        over = Handover(SOURCE, end.state).over
        return self.hang_up(world) if over and not rest else world

    def tell(self, world: World, message: str) -> World:
        if world.cut or world.source.closed:
            return world
        return replace(world, there=(*world.there, message))

    def hang_up(self, world: World, message: str = "FIN") -> World:
        world = self.tell(world, message)
        return replace(world, source=replace(world.source, closed=True))

    # The destination.

    def destination_steps(self, world: World) -> Iterator[tuple[str, World]]:
        end = world.destination
        if not end.holder and not end.leader:
            return
        if end.duties and end.holder:
            yield f"destination: {end.duties[0].name}", self.destination_duty(world)
        elif end.holder and end.seen < len(world.there) and not end.closed:
            message = world.there[end.seen]
            seen = replace(world, destination=replace(end, seen=end.seen + 1))
            yield f"destination reads {message}", self.destination_reads(seen, message)
        if end.holder and end.state is not None and not end.duties:
            yield "destination: cancel", self.feed_destination(world, DE.CANCEL)
            left = self.feed_destination(world, DE.LEAVE)
            if left != world:
                left = replace(left, destination=replace(left.destination, left=True))
                yield "destination: leave", left
        if end.leader:
            world_ = replace(world, destination=replace(end, leader=False))
            yield "destination's leader is killed", world_ if end.holder else self.shut_down(world_)
        if end.holder:
            dead = replace(end, holder=False, runs=False, duties=())
            # A leader that sees its guest die says that the guest will never run.
            after = replace(world, destination=dead)
            if end.leader and end.state is not None:
                after = self.answer(after, "SHUT 1")
            yield "destination's holder is killed", self.shut_down(after)

    def destination_reads(self, world: World, message: str) -> World:
        end = world.destination
        if end.state is None:
            if message != "END":
                return self.shut_down(replace(world, destination=replace(end, holder=False)))
            if self.stock == "destination":
                # It runs the guest first, then says so.
                return self.shut_down(
                    self.answer(
                        replace(world, destination=replace(end, state=D.RUNS, runs=True, ran=True)),
                        "SHUT 0",
                    )
                )
            first = D.PROMISED_STOCK if self.stock == "source" else D.PROMISED
            loaded = replace(world, destination=replace(end, state=first))
            return self.feed_destination(loaded, DE.BEGIN)
        return self.feed_destination(world, TO_DESTINATION[message])

    def feed_destination(self, world: World, event: DestinationEvent) -> World:
        end = world.destination
        if end.duties:
            return world
        assert isinstance(end.state, Destination)
        machine = Handover(DESTINATION, end.state)
        duties = machine.feed(event)
        return replace(world, destination=replace(end, state=machine.state, duties=duties))

    def destination_duty(self, world: World) -> World:
        end = world.destination
        duty, rest = end.duties[0], end.duties[1:]
        world = replace(world, destination=replace(end, duties=rest))
        if duty is DA.PROMISE:
            world = self.answer(world, "SHUT 0")
        elif duty is DA.REFUSE:
            world = self.answer(world, "SHUT 1")
        elif duty is DA.SAY_STARTED:
            world = self.answer(world, "PONG")
        elif duty is DA.START:
            running = replace(world, destination=replace(world.destination, runs=True, ran=True))
            world = self.feed_destination(running, DE.STARTED)
        elif duty is DA.CLOSE:
            world = self.shut_down(world)
        return world

    def answer(self, world: World, message: str) -> World:
        if world.cut or world.destination.closed:
            return world
        return replace(world, back=(*world.back, message))

    def shut_down(self, world: World) -> World:
        world = self.answer(world, "FIN")
        return replace(world, destination=replace(world.destination, closed=True))


def worlds(ends: Ends, without: tuple[str, ...] = ()) -> dict[World, tuple[World | None, str]]:
    """Return every world that can be reached, with the one before it and the event between."""
    first = ends.begin()
    found: dict[World, tuple[World | None, str]] = {first: (None, "")}
    todo = deque([first])
    while todo:
        world = todo.popleft()
        for what, after in ends.steps(world):
            if after not in found and not any(word in what for word in without):
                found[after] = (world, what)
                todo.append(after)
    return found


def history(found: dict[World, tuple[World | None, str]], world: World) -> str:
    """Return the events up to this world, in order."""
    steps = []
    at: World | None = world
    while at is not None:
        at, what = found[at]
        steps.append(what)
    return "; ".join(reversed(steps))


def hears(world: World) -> bool:
    """Return whether a source that holds its guest hears, or will hear, that nobody answers."""
    return world.cut or world.destination.closed or not world.source.leader


def killed(world: World) -> bool:
    """Return whether somebody killed the guest where it ran."""
    return any(end.ran and not end.holder for end in (world.source, world.destination))


def settled(ends: Ends, world: World) -> bool:
    """Return whether only people, deaths or a cut could still change anything."""
    outside = ("cancel", "timeout", "leave", "killed", "cut")
    return not any(
        after != world for what, after in ends.steps(world) if not any(w in what for w in outside)
    )


@pytest.fixture(scope="module")
def confirming() -> dict[World, tuple[World | None, str]]:
    return worlds(Ends("none"))


def test_never_two(confirming: dict[World, tuple[World | None, str]]) -> None:
    """Broken: some order of bytes, deaths and cancels lets the guest run at both ends."""
    assert len(confirming) > 1000
    for world in confirming:
        assert not (world.source.runs and world.destination.runs), history(confirming, world)


def test_never_none(confirming: dict[World, tuple[World | None, str]]) -> None:
    """Broken: some order of bytes, deaths and cancels loses the guest.

    It runs; or its copy at the destination is kept, because the link was cut or a command had to
    leave within the one window, or because all of the source was killed; or its holders were both
    killed, or the one that had it before the other had it whole.
    """
    ends = Ends("none")
    for world in confirming:
        source, destination = world.source, world.destination
        if source.runs or destination.runs or not settled(ends, world):
            continue
        waits = source.holder and source.state is S.HOLDING and not hears(world)
        kept = destination.holder and destination.state is D.KEPT
        window = world.cut or source.left or destination.left
        in_doubt = kept and (window or not source.holder)
        both = not source.holder and not destination.holder
        half = not source.holder and destination.state is None
        both |= not destination.holder and not destination.leader and source.state is S.UNCONFIRMED
        lost = window and not destination.holder and source.state is S.UNCONFIRMED
        assert waits or in_doubt or both or half or lost or killed(world), history(
            confirming, world
        )


def test_never_none_after_one_death() -> None:
    """Broken: one killed process, and nothing else that goes wrong, leaves nobody with the guest.

    The source may be told to cancel and may time out meanwhile.
    """
    ends = Ends("none")
    for victim in ("source's leader", "source's holder", "destination's leader"):
        others = {
            "source's leader",
            "source's holder",
            "destination's leader",
            "destination's holder",
        }
        found = worlds(ends, ("cut", "leave", "destination: cancel", *(others - {victim})))
        for world in found:
            if not settled(ends, world) or (not world.source.holder and not world.whole):
                continue
            waits = world.source.state is S.HOLDING and not hears(world)
            runs = world.source.runs or world.destination.runs
            assert runs or waits or killed(world), history(found, world)


def test_a_kept_copy_is_never_the_only_one_thrown_away(
    confirming: dict[World, tuple[World | None, str]],
) -> None:
    """Broken: a destination throws a copy away that its source has given up."""
    for world in confirming:
        if world.destination.state is D.RETURNED:
            given = world.source.state in (S.GIVEN, S.GONE, S.UNCONFIRMED) and world.source.holder
            assert not given, history(confirming, world)


def test_stock_destination() -> None:
    """Broken: more can go wrong with a stock QEMU than its own rules make inevitable.

    It runs the guest before it answers, so a source that is cut off from it, or told to cancel, in
    between runs it, too. Without either there is one guest, whatever else happens to the source.
    """
    found = worlds(Ends("destination"), ("cut", "cancel", "leave", "timeout", "destination's"))
    for world in found:
        assert not (world.source.runs and world.destination.runs), history(found, world)


def test_stock_source() -> None:
    """Broken: the guest of a stock QEMU would run at both ends, or at none of them.

    It closes the connection in order when it has given the guest up, and breaks it otherwise.
    """
    ends = Ends("source")
    found = worlds(ends, ("leave", "timeout"))
    for world in found:
        source, destination = world.source, world.destination
        assert not (source.runs and destination.runs), history(found, world)
        if source.runs or destination.runs or not settled(ends, world) or killed(world):
            continue
        waits = source.holder and source.state is S.HOLDING_STOCK and not hears(world)
        kept = destination.holder and destination.state is D.KEPT
        both = not source.holder and not destination.holder
        half = not source.holder and destination.state is None
        given = not destination.holder and source.state is S.GONE
        assert waits or kept or both or half or given, history(found, world)
