"""Runs the `vmferry` command as `python -m vmferry`."""

from __future__ import annotations

from .tools.__main__ import main

if __name__ == "__main__":
    main()
