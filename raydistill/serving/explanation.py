"""Why a passage has its score: the terms that query and passage share, and what each adds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydistill.encoders.batch import SparseBatch


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one shared term adds: product = query_weight * passage_impact, in float32."""

    term: str
    query_weight: float
    passage_impact: float
    product: float


def contributions(query: SparseBatch, passage: SparseBatch, vocabulary: Sequence[str]) -> list[Contribution]:
    """Return the shared terms of one query and one stored passage, the largest product first; together they are the score.

    Args:
        query: one row.
        passage: one row, as `Searcher.vectors` gives it, over the same vocabulary.
        vocabulary: the terms by id.
    """
    terms, at_query, at_passage = np.intersect1d(query.term_ids, passage.term_ids, assume_unique=True, return_indices=True)
    weights, impacts = query.weights[at_query], passage.weights[at_passage]
    products = weights * impacts
    order = np.argsort(-products, kind="stable").tolist()
    return [Contribution(vocabulary[int(terms[n])], float(weights[n]), float(impacts[n]), float(products[n])) for n in order]
