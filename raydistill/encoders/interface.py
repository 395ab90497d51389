"""The one interface of sparse encoders: texts in, sparse vectors out. Implementations live beside this module.

Everything that stores, searches or trains against sparse vectors talks to this protocol and to `SparseBatch`; nothing
here knows how a vector is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from raydistill.encoders.batch import SparseBatch


@dataclass
class EncodingTally:
    """What encoding took, added up.

    Attributes:
        passages: encoded.
        truncated: passages longer than the encoder reads, cut at its limit.
        tokens: read, special tokens included; 0 for encoders that compute nothing with tokens.
        padded_tokens: computed, padding included.
        compute_seconds: during which the model computed; on a GPU by its own clock.
    """

    passages: int = 0
    truncated: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    compute_seconds: float = 0.0


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

    def encode_stream(self, windows: Iterable[Sequence[str]], tally: EncodingTally) -> Iterator[SparseBatch]:
        """Yield the passages' vectors window by window, in order, and add what it took to the tally.

        Only what one window needs is held. On a GPU reading and tokenising a window overlaps with computing the one before.
        """
        ...

    def encode_queries(self, texts: Sequence[str]) -> SparseBatch:
        """Return one vector a query, in the order of the texts; scores are dot products with passages' vectors."""
        ...

    def vocabulary(self) -> list[str]:
        """Return the terms by id, `vocabulary_size` strings; ids that no token has are called `[no term N]`."""
        ...
