"""A QEMU command line with comments, as text for a shell or as JSON."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Command:
    """A command line: QEMU's program for a `target`, `options` (each with its value), and
    `comments`, which are lines on facts that the stream does not have.
    """

    target: str = "x86_64"
    options: list[tuple[str, ...]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    @property
    def program(self) -> str:
        """Return the name of the program."""
        return f"qemu-system-{self.target}"

    def text(self) -> str:
        """Return the command as text for a shell."""
        # Text from the stream must not be able to add a line or an option.
        lines = [f"# {' '.join(line.split())}" for line in self.comments]
        shown = [" ".join(map(shlex.quote, option)) for option in self.options]
        return "\n".join([*lines, " \\\n  ".join([self.program, *shown])])

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys program, options (each a list of its name and its
        value), comments.
        """
        options = [list(option) for option in self.options]
        return {"program": self.program, "options": options, "comments": self.comments}


def option_value(text: str) -> str:
    """Return the text as an option value, with doubled commas because commas separate options."""
    return text.replace(",", ",,")
