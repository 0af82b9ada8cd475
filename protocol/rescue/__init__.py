"""Read damaged streams: find the next sound record, correct single bits, and find the devices."""
