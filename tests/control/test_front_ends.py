"""Each setting has one range, whoever asks for it: Python, the command line, or a QMP client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest
from vmferry.control.errors import QmpError
from vmferry.control.extensions import PREFIX
from vmferry.control.parameters import PARAMETERS, Parameters
from vmferry.protocol.errors import ParameterError
from vmferry.receiver.coordinator import ReceiveParameters
from vmferry.sender.parameters import SendParameters
from vmferry.sender.throttle import ThrottleParameters
from vmferry.tools.commands.receive import receive
from vmferry.tools.commands.send import send
from vmferry.transport import settings
from vmferry.transport.settings import Choice, Number, Setting, Text

DECLARED = [value for value in vars(settings).values() if isinstance(value, Number | Choice | Text)]
OPTIONS = {
    option.opts[0][2:]: option
    for command in (receive, send)
    for option in command.params
    if isinstance(option, click.Option)
}
FROM_PYTHON: dict[str, Callable[[Any], Any]] = {
    "max-bandwidth": lambda value: SendParameters(max_bandwidth=value),
    "avail-switchover-bandwidth": lambda value: SendParameters(avail_switchover_bandwidth=value),
    "downtime-limit": lambda value: SendParameters(downtime_limit=value / 1000),
    "workers": lambda value: SendParameters(workers=value),
    "xbzrle-cache-size": lambda value: SendParameters(xbzrle_cache_size=value),
    "cpu-throttle-initial": lambda value: ThrottleParameters(initial=value),
    "cpu-throttle-increment": lambda value: ThrottleParameters(increment=value),
    "max-cpu-throttle": lambda value: ThrottleParameters(1, maximum=value),
    "throttle-trigger-threshold": lambda value: ThrottleParameters(trigger_threshold=value),
    "multifd-channels": lambda value: SendParameters(multifd_channels=value),
    "multifd-zlib-level": lambda value: SendParameters(multifd_zlib_level=value),
    "multifd-zstd-level": lambda value: SendParameters(multifd_zstd_level=value),
    "max-device-state": lambda value: ReceiveParameters(max_device_state=value),
}


def by_python(name: str, value: int) -> bool:
    """Return whether the Python parameters accept this value."""
    try:
        FROM_PYTHON[name](value)
    except ParameterError:
        return False
    return True


def by_command(name: str, value: int) -> bool:
    """Return whether the option of the command line accepts this text."""
    option = OPTIONS[name]
    try:
        assert option.type.convert(str(value), option, None) == value
    except click.BadParameter:
        return False
    return True


def by_qmp(name: str, value: int) -> bool:
    """Return whether the QMP service accepts this value."""
    name = name if name in PARAMETERS else PREFIX + name
    together = {"max-cpu-throttle": {"cpu-throttle-initial": 1}}.get(name, {})
    try:
        checked = PARAMETERS[name].type(name, value)
        Parameters().set({**together, name: checked}, 1)
    except QmpError:
        return False
    return True


@pytest.mark.parametrize("name", FROM_PYTHON)
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_ranges_are_the_same(name: str, off: int) -> None:
    """Broken: a value that one of the three takes would be refused, or misread, by another."""
    (setting,) = (each for each in DECLARED if each.name == name)
    assert isinstance(setting, Number)
    for value, inside in ((setting.least + off, off >= 0), (setting.most + off, off <= 0)):
        assert by_python(name, value) == inside
        assert by_command(name, value) == inside
        # A cache has a power of two, for QEMU's clients.
        if name in PARAMETERS | {"workers": None} and not (name == "xbzrle-cache-size" and inside):
            assert by_qmp(name, value) == inside


@pytest.mark.parametrize("setting", DECLARED, ids=lambda setting: setting.name)
def test_defaults_are_the_same(setting: Setting) -> None:
    """Broken: the same migration would differ by who asks for it, or a setting do nothing."""
    used = 0
    default = getattr(setting.default, "value", setting.default)
    if setting.name in OPTIONS:
        used += 1
        context = click.Context(send)
        shown = OPTIONS[setting.name].get_default(context)
        if shown is not None:
            value = OPTIONS[setting.name].type_cast_value(context, shown)
            assert getattr(value, "value", value) == default
    name = setting.name if setting.name in PARAMETERS else PREFIX + setting.name
    if name in PARAMETERS:
        used += 1
        # A service limits the bandwidth, as the original design has it.
        if setting is not settings.MAX_BANDWIDTH:
            assert PARAMETERS[name].default == ("auto" if default is None else default)
    assert used
