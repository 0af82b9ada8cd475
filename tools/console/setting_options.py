"""Makes the options of commands from the settings of a migration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ...transport.settings import Choice, Flag, Number, Setting, Unit
from .types import Size

if TYPE_CHECKING:
    _ChoiceType = click.Choice[str]
else:
    # Older versions of click have no generic types.
    _ChoiceType = click.Choice

_NAMES = {
    Unit.COUNT: "number",
    Unit.BYTES: Size.name,
    Unit.RATE: Size.name,
    Unit.MILLISECONDS: "milliseconds",
    Unit.PERCENT: "percent",
}
_SIZES = (Unit.BYTES, Unit.RATE)


class NumberType(Size):
    """The value of a setting that is a number: a size such as `512M`, or a whole number."""

    def __init__(self, setting: Number[Any]) -> None:
        self._setting = setting
        self.name = _NAMES[setting.unit]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Raises BadParameter if the setting cannot have it."""
        setting = self._setting
        if setting.unit in _SIZES:
            number = super().convert(value, param, ctx)
        elif str(value).lstrip("-").isdecimal():
            number = int(value)
        else:
            such_as = "" if setting.default is None else f", such as {setting.default}"
            self.fail(f"{value!r} is not an integer{such_as}", param, ctx)
        if not setting.accepts(number):
            self.fail(f"{value!r} is not {setting.expects}", param, ctx)
        return number


class MemberType(_ChoiceType):
    """The value of a setting that is one of some words, as a member of its enumeration."""

    def __init__(self, setting: Choice[Any]) -> None:
        super().__init__(setting.words)
        self._members = type(setting.default)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the member. Raises BadParameter if there is no such word."""
        return self._members(super().convert(value, param, ctx))


def _in_units(setting: Number[Any]) -> str:
    """Return the default of a setting as a user would write it."""
    if setting.unit not in _SIZES:
        return str(setting.default)
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if setting.default and setting.default % (1 << shift) == 0:
            return f"{setting.default >> shift}{unit}"
    return str(setting.default)


def setting_option(setting: Setting, **changes: Any) -> Callable[[Any], Any]:
    """Return the option for a setting; `changes` are arguments of `click.option` to replace."""
    arguments: dict[str, Any] = {"help": setting.help, "show_default": True}
    if isinstance(setting, Number):
        default = None if setting.default is None else _in_units(setting)
        arguments |= {"type": NumberType(setting), "default": default}
    elif isinstance(setting, Flag):
        arguments |= {"is_flag": True, "default": setting.default, "show_default": False}
    elif isinstance(setting, Choice):
        arguments |= {"type": MemberType(setting), "default": setting.default.value}
    else:
        arguments["default"] = setting.default
    return click.option(f"--{setting.name}", **arguments | changes)
