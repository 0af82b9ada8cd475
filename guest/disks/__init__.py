"""Hold the disks of a guest: raw images, locked while they are in use."""
