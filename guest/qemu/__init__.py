"""Talk to a running QEMU, whose guest QEMU moves by itself: its monitor, and what it is asked."""
