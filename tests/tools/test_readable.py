"""Test how JSON values are shown to people."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.tools.console.tables import readable, table

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)

EXAMPLES = {
    '{"status": "active", "total-time": 12}': ["status      active", "total-time  12"],
    '{"ram": {"total": 1, "mbps": 0.5}, "set-up": true}': [
        "ram",
        "  total  1",
        "  mbps   0.5",
        "set-up  true",
    ],
    '[{"name": "xbzrle", "state": false}, {"name": "events", "more": null}]': [
        "name    state  more",
        "xbzrle  false",
        "events         null",
    ],
    '[{"name": "a", "in": {"x": 1, "y": []}}, 7, [8, 9]]': [
        "- name  a",
        "  in",
        "    x  1",
        "    y  []",
        "7",
        "- 8",
        "  9",
    ],
    '"one\\r\\ntwo"': ["one", "two"],
    '["\\u001b[2J"]': ["\\x1b[2J"],
    "{}": [],
    "[]": [],
    "5": ["5"],
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(text: str) -> None:
    """Broken: an answer would be hard to read, or lack a part."""
    assert list(readable(json.loads(text))) == EXAMPLES[text]


@given(VALUES)
def test_each_line_is_one_and_prints(value: object) -> None:
    """Broken: what a guest is called could do something to the terminal."""
    for line in readable(value):
        assert line.isprintable()


def test_table() -> None:
    """Broken: columns would not stand under each other."""
    assert list(table([("id", "name"), ("1234", "a")])) == ["id    name", "1234  a"]
