"""Control: what steers migrations and tells others of them, over a sender and a receiver."""
