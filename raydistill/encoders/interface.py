"""The one interface of sparse encoders: texts in, sparse vectors out. Implementations live beside this module.

Everything that stores, searches or trains against sparse vectors talks to this protocol and to `SparseBatch`; nothing
here knows how a vector is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from raydistill.encoders.batch import SparseBatch


@runtime_checkable
class SparseEncoder(Protocol):
    """Encodes texts as sparse vectors over a vocabulary of terms.

    A text's vector does not depend on the texts it is encoded with (within the float tolerance that the
    implementation's tests state). A text without any known term gives an empty row, never an error.
    """

    @property
    def vocabulary_size(self) -> int:
        """Number of columns of every batch."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a passage, in the order of the texts."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a query, in the order of the texts; scores are dot products with passages' vectors."""
        ...

    def vocabulary(self) -> list[str]:
        """Return the terms by id, `vocabulary_size` strings; ids that no token has are called `[no term N]`."""
        ...
