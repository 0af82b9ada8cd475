"""Says before a migration whether a stream, a save file or a QEMU would load at another QEMU."""
