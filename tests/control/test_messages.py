"""Messages: whole ones, in pieces, and what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmferry.control.errors import QmpError
from vmferry.control.messages import MAX_DEPTH, MAX_MESSAGE, MessageReader, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)
GOOD = b'{"execute": "query-status"}'


def shown(found: list[Any]) -> list[Any]:
    """Return errors as text, to compare them."""
    return [str(item) if isinstance(item, QmpError) else item for item in found]


@settings(max_examples=50)
@given(
    st.lists(OBJECTS, max_size=5), st.booleans(), st.sampled_from([b"", b"\r\n", b" \n", b"\xff"])
)
def test_whole_messages(messages: list[Any], ascii_only: bool, between: bytes) -> None:
    """Broken: a message is lost, or two are taken for one, whatever stands between them."""
    data = between.join(json.dumps(m, ensure_ascii=ascii_only).encode() for m in messages)
    assert MessageReader().feed(data) == messages


@settings(max_examples=200)
@given(
    st.lists(
        st.binary(max_size=20)
        | OBJECTS.map(encode)
        | st.text('{}[]"\\ \n,:1a', max_size=12).map(str.encode)
    ).map(b"".join)
)
def test_byte_by_byte(data: bytes) -> None:
    """Broken: what a message is would depend on how it came over the socket."""
    reader, found = MessageReader(), []
    for byte in data:
        found += reader.feed(bytes([byte]))
    assert shown(found) == shown(MessageReader().feed(data))


@pytest.mark.parametrize(
    ("broken", "errors"),
    [
        (b"foo\n", 1),
        (b"}", 1),
        (b'{"execute": foo}', 1),
        (b'{"execute": "x",}', 1),
        (b'{"execute": "x", "execute": "y"}', 1),
        (b'{"a": "without an end\n', 1),
        (b'{"a": [[1, 2\xff', 1),
        (b'{"a": "\xc3\x28"}', 1),
        (b'{"a": NaN}', 1),
        (b'{"a": 1e999}', 1),
        (b"9" * 5000 + b"\n", 1),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 1),
        (b'{"a": "' + b"x" * MAX_MESSAGE + b'"}', 1),
        (b'{"a": "' + b'\\"' * MAX_MESSAGE + b'"}', 1),
        (b"x" * (3 * MAX_MESSAGE) + b"\n", 4),
    ],
)
def test_next_message_is_found(broken: bytes, errors: int) -> None:
    """Broken: one bad message would cost the connection, or the answer to the next one."""
    reader, found = MessageReader(), []
    for start in range(0, len(broken), 60_000):
        found += reader.feed(broken[start : start + 60_000])
    assert 1 <= len(found) <= errors
    assert all(isinstance(item, QmpError) for item in found)
    assert reader.feed(GOOD) == [json.loads(GOOD)]


def test_memory_is_bounded() -> None:
    """Broken: a message without an end would fill the service's memory."""
    reader = MessageReader()
    for opening in (b'{"a": "', b"x", b'[1, "\\'):
        for _ in range(64):
            reader.feed(opening + b"x" * (1 << 16))
            assert len(reader._text) <= MAX_MESSAGE + (1 << 17)
        reader.feed(b"\xff")
