"""Reading of damaged streams: finding the next sound record behind damage."""
