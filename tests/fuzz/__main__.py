"""Fuzz one of the targets: `python -m tests.fuzz TARGET [FOLDER] [libFuzzer's options]`.

Needs atheris (`pip install atheris`). Inputs that are new are kept in FOLDER, if one is given; a
failure is kept as `crash-...` in the current folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["vmferry"]):
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import TARGETS, harmless


def main() -> None:
    """Run until a failure, or as long as the options say (`-max_total_time=60`)."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"which of: {', '.join(TARGETS)}")
    target = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[target]):
            Path(folder, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], lambda data: harmless(target, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
