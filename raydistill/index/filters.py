"""Which passages a search may return: a set of passage numbers, allowed or excluded. How a search uses it is in `search`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.index.passage_masks import Mask, mask_of, mask_without


@dataclass(frozen=True)
class PassageFilter:
    """A condition on passage numbers.

    Attributes:
        numbers: int64 [N]; ascending, distinct.
        allows: True: only these may be found. False: all but these.
    """

    numbers: NDArray[np.int64]
    allows: bool

    @classmethod
    def only(cls, numbers: NDArray[np.int64]) -> PassageFilter:
        """Return the filter that passes these passages; any order, repeats allowed. Numbers that no passage has, such as
        the -1 of `Searcher.find`, pass nothing."""
        return cls(np.unique(np.asarray(numbers, dtype=np.int64)), True)

    @classmethod
    def without(cls, numbers: NDArray[np.int64]) -> PassageFilter:
        """Return the filter that passes all passages but these; any order, repeats allowed."""
        return cls(np.unique(np.asarray(numbers, dtype=np.int64)), False)

    def mask(self, first: int, passages: int) -> Mask | None:
        """Return the mask (see `passage_masks`) of a segment with the passages first..first + passages - 1: those that pass;
        None where all do."""
        start, stop = np.searchsorted(self.numbers, [first, first + passages]).tolist()
        named = self.numbers[start:stop] - first
        if self.allows:
            return mask_of(passages, named)
        return mask_without(passages, named) if len(named) else None
