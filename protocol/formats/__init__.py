"""File formats that stand around a stream, or are made from one."""
