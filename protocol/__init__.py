"""Declare, read and write the bytes of QEMU's migration stream, without I/O."""
