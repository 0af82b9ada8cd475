"""Declare the file formats that contain a stream, or are made from one."""
