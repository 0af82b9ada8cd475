"""What fuzzing found once, and what it begins with: see tests/fuzz."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, harmless

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_found_once(target: str) -> None:
    """Broken: bytes that ended in a traceback before would do so again."""
    for path in sorted(CORPUS.glob(f"{target}/*")):
        harmless(target, path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_accepted(target: str) -> None:
    """Broken: fuzzing would begin with what is refused, and hardly get anywhere."""
    for seed in SEEDS[target]:
        TARGETS[target](seed)
