"""Iterative sections other than `ram`: events, reading and writing of each."""
