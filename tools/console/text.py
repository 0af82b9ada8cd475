"""Prints text for users, and opens files and shows their names as users write them.

The parts of click that others than commands need, so that these can be used without a command.
"""

from __future__ import annotations

from click import echo, open_file
from click import format_filename as file_name

__all__ = ["echo", "file_name", "open_file"]
