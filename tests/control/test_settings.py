"""Test what can be set, in what range, and how other values are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vmferry.control.arguments import Argument, boolean, check_arguments, integer, number, string
from vmferry.control.capabilities import CAPABILITIES, Capabilities
from vmferry.control.errors import QmpError
from vmferry.control.parameters import PARAMETERS, Parameters
from vmferry.control.setting_commands import clamped_downtime
from vmferry.transport.settings import DOWNTIME_LIMIT

DECLARED = (
    Argument("text", string),
    Argument("flag", boolean, default=False),
    Argument("value-of-it", integer, default=None),
    Argument("part", number, default=None),
)


@pytest.mark.parametrize(
    ("given_", "error"),
    [
        ({}, "Parameter 'text' is missing"),
        ({"text": "a", "x": 1}, "Parameter 'x' is unexpected"),
        ({"text": 1}, "Invalid parameter type for 'text', expected: string"),
        ({"text": None}, "Invalid parameter type for 'text', expected: string"),
        ({"text": "a\0b"}, "Parameter 'text' holds a character that is none"),
        ({"text": "\ud800"}, "Parameter 'text' holds a character that is none"),
        ({"text": "a", "flag": 1}, "Invalid parameter type for 'flag', expected: boolean"),
        ({"text": "a", "value-of-it": 1.5}, "for 'value-of-it', expected: integer"),
        ({"text": "a", "value-of-it": True}, "for 'value-of-it', expected: integer"),
        ({"text": "a", "value-of-it": 1 << 63}, "Parameter 'value-of-it' expects int64"),
        ({"text": "a", "part": "1"}, "Invalid parameter type for 'part', expected: number"),
    ],
)
def test_wrong_arguments(given_: dict[str, Any], error: str) -> None:
    """Broken: a client could not tell what was wrong with its command, or it would be done."""
    with pytest.raises(QmpError) as raised:
        check_arguments(DECLARED, given_)
    assert error in raised.value.description


def test_right_arguments() -> None:
    """Broken: a function would get other arguments than it declares."""
    found = check_arguments(DECLARED, {"text": "a", "value-of-it": -1, "part": 10**400})
    assert found == {"text": "a", "flag": False, "value_of_it": -1, "part": math.inf}


def test_capabilities_are_set_together() -> None:
    """Broken: a list that is refused would be done in part."""
    capabilities = Capabilities()
    with pytest.raises(QmpError, match="switch 'xbzrle' off first"):
        capabilities.set([("xbzrle", True), ("multifd", True)])
    assert not capabilities["xbzrle"]
    capabilities.set([("xbzrle", True), ("multifd", False)])
    assert [item["capability"] for item in capabilities.as_qmp()] == list(CAPABILITIES)
    assert [item["capability"] for item in capabilities.as_qmp() if item["state"]] == ["xbzrle"]
    for together in ("xbzrle", "multifd"):
        only = [("xbzrle", False), (together, True), ("mapped-ram", True)]
        with pytest.raises(QmpError, match=f"'mapped-ram' has .*: switch '{together}' off first"):
            capabilities.set(only)
    capabilities.set([("xbzrle", False), ("mapped-ram", True)])
    assert capabilities["mapped-ram"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_takes_its_default(name: str) -> None:
    """Broken: what a client reads it could not write back."""
    parameters = Parameters()
    before = parameters.as_qmp()
    declared = PARAMETERS[name]
    parameters.set({name: declared.type(name, before[name])}, 4096)
    assert parameters.as_qmp() == before
    if declared.fixed:
        other = not before[name] if isinstance(before[name], bool) else before[name] * 2 or "1"
        with pytest.raises(QmpError, match="cannot be changed"):
            parameters.set({name: other}, 4096)


def test_parameters_are_set_together() -> None:
    """Broken: of two parameters that do not go together, one would be set."""
    parameters = Parameters()
    with pytest.raises(QmpError, match="max-cpu-throttle"):
        parameters.set({"cpu-throttle-initial": 50, "max-cpu-throttle": 40}, 4096)
    with pytest.raises(QmpError, match="xbzrle-cache-size"):
        parameters.set({"max-bandwidth": 7, "xbzrle-cache-size": 5000}, 4096)
    assert parameters["max-bandwidth"] == 32 << 20
    parameters.set({"cpu-throttle-initial": 30, "max-cpu-throttle": 40}, 4096)


@given(st.floats())
def test_downtime_clamps(seconds: float) -> None:
    """Broken: a downtime out of range would be refused, or set."""
    assert 0 <= clamped_downtime(seconds) <= DOWNTIME_LIMIT.most
    assert clamped_downtime(math.nan) == clamped_downtime(-1.0) == 0
    assert clamped_downtime(math.inf) == DOWNTIME_LIMIT.most
    assert clamped_downtime(1.25) == 1250
