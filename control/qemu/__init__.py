"""Drive the migrations of a running QEMU: QEMU moves its guest, and vmferry sees to the rest.

    check    what would fail is said before anything moves           guest.qemu.checks
    change   options become QEMU's capabilities and parameters       wanted, guest.qemu.settings
    connect  QEMU gets a descriptor of the connection (getfd)         route
    watch    figures, forecasts, stalls, cancels, until it is over    outgoing, rounds, incoming
    restore  the settings as they were; the source runs if it stayed

Where nothing is to be done to the bytes, the connection itself is QEMU's: no copy is made, and no
process is in between that could die. Where the stream is to be compressed, or goes over the
link of a relay, QEMU gets one end of a pair of sockets, and a process of its own, the carrier,
passes what it writes. docs/qemu.md explains this to users.
"""
