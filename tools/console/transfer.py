"""Shows how far a long command has read its stream: a bar on a terminal, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def transfer_bar(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many bytes of `total` are done; None if the total is unknown.

    Without a terminal, or if `quiet`, the function does nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    # rich is slow to import, and is needed on a terminal alone.
    from .bar import transfer  # noqa: PLC0415

    with transfer(title, total) as show:
        yield show
