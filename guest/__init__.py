"""Model a guest: RAM blocks in shared memory, run control, device state, dirty tracking."""
