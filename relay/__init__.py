"""Pass migrations between two QEMUs over a link that compresses and survives a cut.

    a source's connections -> Near -> Session of channels -> Carriers: connections of the link
    the link's connections -> Far  -> Session of channels -> connections to the destination

Either side has one `Session` a migration. A `Channel` is one local connection: `Outgoing` keeps
what the other side has not handed on, `Incoming` puts what arrives in order. `Packer` makes zstd
frames of what leaves, and a `Carrier` moves frames and records over one connection of the link.
docs/relay.md explains the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.lazy import exported

if TYPE_CHECKING:
    from .parameters import RelayParameters, Side
    from .run import run_relay

__all__ = ["RelayParameters", "Side", "run_relay"]

__getattr__ = exported(__name__, {"parameters": "RelayParameters Side", "run": "run_relay"})
