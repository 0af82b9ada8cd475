"""The bytes of QEMU's migration stream: declarations, reader, writer. No I/O."""
