"""Child processes of bench and demo that fail."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

import pytest
from vmferry.tools.measure.children import ChildError, next_message
from vmferry.transport.process import send_message, start_child, stop_children


def _reports(connection: Connection) -> None:
    send_message(connection, "done")


def _raises(_: Connection) -> None:
    raise ValueError("nothing to measure")


def _dies(_: Connection) -> None:
    os.abort()


def test_what_a_child_reports() -> None:
    """Broken: bench and demo would have no results."""
    child = start_child("test", _reports, (), parent=True)
    try:
        assert next_message(child) == "done"
    finally:
        stop_children([child])


@pytest.mark.parametrize(
    ("what", "said"),
    [(_raises, "process test: ValueError: nothing to measure"), (_dies, "process test died")],
)
def test_child_that_fails(what: object, said: str) -> None:
    """Broken: bench and demo would end in a traceback of their own, without the cause."""
    child = start_child("test", what, (), parent=True)  # type: ignore[arg-type]
    try:
        with pytest.raises(ChildError, match=said):
            next_message(child)
    finally:
        stop_children([child])
