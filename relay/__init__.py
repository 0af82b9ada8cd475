"""Pass migrations between two QEMUs over a link that compresses and survives a cut.

    a source's connections -> Near -> Session of channels -> Carriers: connections of the link
    the link's connections -> Far  -> Session of channels -> connections to the destination

Either side has one `Session` a migration. A `Channel` is one local connection: `Outgoing` keeps
what the other side has not handed on, `Incoming` puts what arrives in order. `Packer` makes zstd
frames of what leaves, and a `Carrier` moves frames and records over one connection of the link.
docs/relay.md explains the link.
"""
