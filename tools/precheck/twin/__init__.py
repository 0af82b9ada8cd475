"""Starts a QEMU like another one, which touches nothing of the host, to read what it would save."""
