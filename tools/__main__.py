"""Where the command begins: `vmferry`, and `python -m vmferry.tools`.

Nothing that takes time is imported before signals are taken care of.
"""

from __future__ import annotations

from .console import interruption


def main() -> None:
    """Run the `vmferry` command."""
    interruption.start()
    try:
        from .cli import main as command  # noqa: PLC0415

        command(prog_name="vmferry", obj=interruption.begin)
    finally:
        interruption.end()


if __name__ == "__main__":
    main()
