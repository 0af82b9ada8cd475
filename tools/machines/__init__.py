"""What is known of QEMU's machines: memory layout, processors, devices."""
