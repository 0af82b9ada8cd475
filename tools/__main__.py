"""Where the command begins: `vmferry`, and `python -m vmferry.tools`.

Every process of a migration imports the program's main module again, so this one imports nothing
before it is called.
"""

from __future__ import annotations


def main() -> None:
    """The `vmferry` command."""
    from .cli import main as command  # noqa: PLC0415

    command(prog_name="vmferry")


if __name__ == "__main__":
    main()
