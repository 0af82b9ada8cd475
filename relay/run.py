"""Run a relay: listen, pass migrations, and leave in order when asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..transport.channel import listen
from .far import Far
from .near import Near
from .parameters import RelayParameters, Side

Relay = Near | Far


async def run_relay(
    parameters: RelayParameters,
    report: Callable[[str], None],
    started: Callable[[Relay], None] = lambda _: None,
) -> None:
    """Pass migrations until cancelled, or one of them if the parameters say so.

    `report` shows a line; `started` gets the relay once it listens. Raises ChannelError if it
    cannot listen, and LinkError if the one migration failed.
    """
    listener = listen(parameters.listen_uri)
    try:
        kind = Near if parameters.side is Side.NEAR else Far
        relay = kind(parameters, listener, report)
        report(f"listening on {listener.address}")
        started(relay)
        await relay.run()
    finally:
        listener.close()
        # What is ready to be closed, and what was said last, leaves before the loop ends.
        await asyncio.sleep(0)
