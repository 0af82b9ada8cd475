"""Decide who has the guest when the link, or the near relay, of a migration is gone for good.

A source whose connection breaks takes its guest back. So that connection must not break while the
destination may have the guest, too (laws 5 and 8). The near relay knows what has left; the far one
knows what the destination got and what it answered. docs/relay.md says who decides what.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..protocol.errors import StreamError
from ..protocol.return_path import ReturnPathReader, Shut
from ..protocol.wire.link import Fate
from .channel import Channel
from .watch import StreamWatch

ANSWER = 30.0
"""Seconds that a destination has for its answer, once it knows that nothing more follows."""
_LOOK_EVERY = 0.02
_LOOK_THERE = "look there; if it does not run, end this relay, and the source runs on"
_WORDS = {
    Fate.UNKNOWN: "whether the destination got the whole guest is not known",
    Fate.LACKS: "the destination did not get the whole guest",
    Fate.HAS: "the destination got the whole guest",
}


class Ending:
    """The end of one session, which is not always in order.

    `fail` breaks all channels and ends the session, which sets `over`.
    """

    def __init__(
        self,
        watch: StreamWatch,
        report: Callable[[str], None],
        fail: Callable[[str], None],
        over: asyncio.Event,
    ) -> None:
        self.main: Channel | None = None
        """The connection with the migration stream, once some of it has passed."""
        self.held = False
        """True while the source is kept waiting, as the destination may have its guest."""
        self.settling = False
        """True once the far relay passes nothing more, and waits for the destination's answer."""
        self.has_guest = False
        """True once the destination has answered that it has the guest (SHUT, status 0)."""
        self._heard = self._foreign = False
        self._answers = ReturnPathReader()
        self._held_for: set[str] = set()
        self._watch = watch
        self._report = report
        self._fail = fail
        self._over = over

    def hear(self, data: memoryview) -> None:
        """Read what the destination answers to the source."""
        if self._foreign or self._postcopy:
            return
        try:
            found = self._answers.feed(bytes(data))
        except StreamError:
            self._foreign = True
            return
        self._heard = self._heard or bool(found)
        for message in found:
            if isinstance(message, Shut):
                self.has_guest = message.status == 0

    @property
    def _postcopy(self) -> bool:
        return self._watch.view is not None and self._watch.view.postcopy

    # The near end.

    async def give_up(self, reason: str, *, refused: bool = False) -> None:
        """Fail, but keep the source waiting if the destination may have its guest.

        `refused`: the reason is the far relay's word, which says itself what the destination has
        got.
        """
        doubt = await self.doubt()
        if doubt is None:
            self._fail(reason)
            return
        words = reason if refused else f"{reason}; {doubt}"
        self._hold(reason, f"{words}: {_LOOK_THERE}")

    async def ended_there(self, fate: Fate, reason: str) -> None:
        """Do what follows from the far relay's word that it has ended the session."""
        if fate is Fate.LACKS or self._postcopy:
            # In postcopy a source does not take its guest back: it waits for a new connection.
            self._fail(reason)
        elif fate is Fate.HAS:
            self._hold(reason, f"{reason}: quit the source")
        else:
            await self.give_up(reason, refused=True)

    def _hold(self, reason: str, line: str) -> None:
        self.held = True
        if reason not in self._held_for:
            self._held_for.add(reason)
            self._report(line)

    async def doubt(self) -> str | None:
        """Return in words why the destination may have the guest; None if it cannot have it."""
        main = self.main
        if main is None or main.reason is not None or main.outgoing.ended:
            return None
        if self._watch.channel is not None:
            self._watch.look_ahead(main.outgoing.open_content)
        await self._watched()
        return self._watch.doubt(main.outgoing.left)

    def early_end(self, channel: Channel, *, up: bool) -> str | None:
        """Return why a source's orderly end is none; None if it is one.

        A source with a return path that closes before its answer was cancelled, or died. What has
        left may arrive, as it would without relays. The rest must not, later: by then the guest may
        run at the source again. `up`: whether the link is.
        """
        outgoing = channel.outgoing
        if channel is not self.main or self.has_guest or self._postcopy or outgoing.done:
            return None
        if up and outgoing.left == outgoing.position:
            return None
        return "the source left before its destination had answered, and before everything was sent"

    async def _watched(self) -> None:
        """Wait until everything was read that has passed."""
        while not self._watch.idle:
            await asyncio.sleep(0.01)

    # The far end.

    async def settle(self, reason: str) -> None:
        """End the session for good, but find out first what the destination has.

        It gets nothing more. One that lacks something gives up then, and one that lacks nothing
        answers: either is the truth, whatever this end believes to have sent.
        """
        if self.settling:
            await self._over.wait()
            return
        self.settling = True
        main = self.main
        if main is not None:
            main.stop_handing_on()
            await self._watched()
            if not self._postcopy and self._watch.doubt(main.incoming.position) is not None:
                await self._answered(main)
        self._fail(f"{reason}; {_WORDS[self.fate]}")

    async def _answered(self, main: Channel) -> None:
        """Wait for the destination's answer, or the end of its connection."""
        deadline = time.monotonic() + ANSWER
        while not (self.has_guest or main.outgoing.ended or main.reason or self._over.is_set()):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(_LOOK_EVERY)

    @property
    def fate(self) -> Fate:
        """Return what the destination has of the guest, as far as the far end knows."""
        if self.main is None:
            return Fate.LACKS
        if self.has_guest or self._postcopy:
            return Fate.HAS
        if self._watch.doubt(self.main.incoming.position) is None:
            return Fate.LACKS
        # A return path that was read from its beginning to its end, and has no such answer in it.
        read_to_end = self._heard and not self._foreign and self.main.outgoing.ended
        return Fate.LACKS if read_to_end else Fate.UNKNOWN
