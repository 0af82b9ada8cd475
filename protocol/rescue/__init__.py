"""Read damaged streams: find the next sound record after damage, and the devices."""
