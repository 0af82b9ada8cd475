"""Decide which block the records after damage continue, by looking ahead at their pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .. import events
from .damage import Damage
from .failure import Failure
from .walk import Walk

Arrived: TypeAlias = Callable[[int, npt.NDArray[np.intp]], bool]
"""Function that returns whether any of some pages arrived before.

Arguments: index of a block, numbers of its pages (n,).
"""
_SAMPLE = 1024
"""Number of pages by which a block is found that lacks these pages."""


@dataclass(frozen=True)
class Ahead:
    """The records ahead that continue an unknown block.

    `count`: number of pages; `sample`: offsets of the first ones; `highest`: highest offset of any;
    `named`: the next record that names its block, or None.
    """

    count: int
    sample: npt.NDArray[np.uint64]
    highest: int
    named: events.PageRun | events.EncodedRun | None


class BlockSearch:
    """Search for the block of records that name none.

    `walk`: reads the records ahead; `blocks`: the RAM blocks, by index; `indexes`: the index of
    each block, by name; `page_size`: bytes; `arrived`: returns whether pages arrived already.
    """

    def __init__(
        self,
        walk: Walk,
        blocks: Sequence[events.RamBlock],
        indexes: Mapping[str, int],
        page_size: int,
        arrived: Arrived,
    ) -> None:
        self._walk = walk
        self._blocks = blocks
        self._indexes = indexes
        self._page_size = page_size
        self._arrived = arrived

    def decide(
        self, position: int, damage: Damage, failure: Failure
    ) -> tuple[events.RamBlock | None, Damage, Ahead]:
        """Return the block that the records at `position` continue.

        That is the only block that they fit into, or whose gap they fill; else, as a guess, the
        block before the damage, or None.
        """
        ahead = self._look_ahead(position)
        named = None if ahead.named is None else ahead.named.block
        fitting = [b for b in self._blocks if b.length > ahead.highest and b is not named]
        if len(fitting) == 1:
            return fitting[0], damage, ahead
        if damage.before is None:
            return None, damage, ahead
        before, certain = self._blocks[damage.before.block], False
        if failure.stride and before in fitting and ahead.count:
            lost, rest = divmod(position - failure.offset, failure.stride)
            filled = damage.before.address + (lost + 1) * self._page_size
            certain = not rest and lost >= 0 and int(ahead.sample[0]) == filled
        guess = before if certain else self._guess(before, fitting, ahead)
        return guess, replace(damage, guessed=guess is not None and not certain), ahead

    def _guess(
        self, before: events.RamBlock, fitting: list[events.RamBlock], ahead: Ahead
    ) -> events.RamBlock | None:
        """Return the likely block of the records ahead, or None.

        That is the block before the damage, or, in the first round, one that lacks the pages.
        """
        numbers = (ahead.sample // np.uint64(self._page_size)).astype(np.intp)
        indexes = self._indexes
        lacking = [b for b in fitting if not self._arrived(indexes[b.name], numbers)]
        # In the first round, a block is sent to its end before the next one.
        whole = [b for b in lacking if ahead.named and b.length == ahead.highest + self._page_size]
        if whole:
            return before if before in whole else whole[0]
        if lacking and before not in lacking:
            behind = [b for b in lacking if indexes[b.name] > indexes[before.name]]
            return (behind or lacking)[0]
        return before if before in fitting else None

    def _look_ahead(self, position: int) -> Ahead:
        """Read records of an unknown block, until one names a block or only one block fits."""
        count, sample, highest = 0, np.zeros(0, np.uint64), -1
        for event in self._walk.read(position, self._walk.unknown):
            if not isinstance(event, (events.PageRun, events.EncodedRun)):
                continue
            if not event.continued:
                return Ahead(count, sample, highest, event)
            sample = np.concatenate((sample, event.offsets[: _SAMPLE - len(sample)]))
            count += len(event.offsets)
            highest = max(highest, int(event.offsets.max()))
            if sum(block.length > highest for block in self._blocks) == 1:
                break
        return Ahead(count, sample, highest, None)
