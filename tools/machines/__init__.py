"""Tables and rules on QEMU's machines: memory layout, processors, devices."""
