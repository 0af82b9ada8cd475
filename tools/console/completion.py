"""Completes command lines in bash, where a word of click's may be several: bash splits at colons.

Importing this module registers the script for bash; zsh and fish use those of click.
"""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, CompletionItem, add_completion_class
from click.shell_completion import split_arg_string as split

_SCRIPT = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames; return ;;
            file) compopt -o default; return ;;
        esac
        COMPREPLY+=("${value// /\\\\ }")
        case $value in *[:/]) compopt -o nospace ;; esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """Completion for bash: it takes the line as typed, and returns the part that bash replaces."""

    source_template = _SCRIPT

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._incomplete = ""

    @staticmethod
    def _check_version() -> None:
        """Accept every bash: starting one to ask for its version takes longer than the answer."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the one that is to be completed."""
        line = os.environ["COMP_LINE"]
        words = split(line)
        if words and not line[-1:].isspace():
            self._incomplete = words.pop()
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line for the script: the kind of the completion, and the text for it."""
        value = str(item.value)
        typed = self._incomplete.rpartition("=")[2]
        kept = typed.rfind(":") + 1 if ":" in os.environ.get("COMP_WORDBREAKS", ":") else 0
        return f"{item.type},{value[kept:]}"


add_completion_class(_Bash)
