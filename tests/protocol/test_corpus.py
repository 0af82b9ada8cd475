"""Test the inputs that fuzzing begins with, and those that it found (`tests/fuzz`).

An input that fuzzing failed on is kept as corpus/TARGET/NAME. Beside these are small inputs that
the targets refuse, each for a reason of its own, after which the file is named.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, harmless

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_harmless(target: str) -> None:
    """Broken: bytes from elsewhere would end in a traceback."""
    random = Random(target)
    for seed in SEEDS[target]:
        for _ in range(40):
            data = bytearray(seed[: random.randint(0, 2 * len(seed))])
            for at in random.choices(range(len(data)), k=min(len(data), random.randint(0, 3))):
                data[at] = random.choice((0, 1, 0x7F, 0xFF, data[at] ^ 1 << random.randrange(8)))
            harmless(target, bytes(data))


def test_corpus_is_harmless() -> None:
    """Broken: bytes that ended in a traceback before would do so again."""
    kept = sorted(CORPUS.glob("*/*"))
    assert kept
    for path in kept:
        harmless(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_accepted(target: str) -> None:
    """Broken: fuzzing would begin with what is refused, and hardly get anywhere."""
    for seed in SEEDS[target]:
        TARGETS[target](seed)
