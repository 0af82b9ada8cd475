"""A guest: RAM blocks in shared memory, run control, device state, dirty tracking."""
