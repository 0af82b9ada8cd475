"""Declare, read and write the iterative sections other than `ram`."""
