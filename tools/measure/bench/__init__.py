"""Measures migrations of vmferry beside those of a QEMU, in turns, and the machine's own limit."""
