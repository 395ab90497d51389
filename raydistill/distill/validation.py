"""Validation while training: the student's vectors searched exactly in the real index, measured, and the best step kept.

Pure of DeepSpeed and Ray: the loop encodes the turns and brings the workers' findings together; here they are searched
and measured. As everywhere, a judged turn that retrieves nothing counts 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raydistill.config import ValidationConfig
from raydistill.conversations.records import ConversationalQuery, ConversationSet
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import TrainingError
from raydistill.evaluation.measures import score_run
from raydistill.evaluation.runs import Run
from raydistill.evaluation.sparsity import query_flops

if TYPE_CHECKING:
    from raydistill.index.search import Searcher  # its compiled loops; a training without validation needs none


@dataclass(frozen=True)
class Finding:
    """What one turn retrieved and what its vector costs.

    Attributes:
        ranking: (passage id, score) pairs, best first.
        terms: non-zero terms of the query (L0).
        flops: expected number of terms shared with a passage.
    """

    ranking: tuple[tuple[str, float], ...]
    terms: int
    flops: float


class Validator:
    """The judged turns of a validation set, and how a student's vectors of them are measured.

    Attributes:
        turns: the judged turns, in file order.

    Raises TrainingError when no turn is judged.
    """

    def __init__(
        self,
        config: ValidationConfig,
        conversations: ConversationSet,
        searcher: Searcher,
        document_share: NDArray[np.float32],
    ) -> None:
        self.turns: tuple[ConversationalQuery, ...] = tuple(
            query for query in conversations.queries() if conversations.qrels.get(query.query_id)
        )
        if not self.turns:
            raise TrainingError(
                "no validation turn has a judgement, so there is nothing to validate on; check data.validation, or leave it "
                "out"
            )
        self._qrels = {turn.query_id: conversations.qrels[turn.query_id] for turn in self.turns}
        self._config = config
        self._searcher = searcher
        self._share = document_share.astype(np.float64)

    def search(self, vectors: SparseBatch) -> list[Finding]:
        """Return what each vector finds among the best `validation.depth` passages, and its cost."""
        result = self._searcher.search(vectors, self._config.depth)
        flops, terms = query_flops(vectors, self._share).tolist(), vectors.lengths().tolist()
        findings = []
        for row in range(len(vectors)):
            hits = int((result.passages[row] >= 0).sum())
            ids = self._searcher.passage_ids(result.passages[row, :hits])
            ranking = tuple(zip(ids, result.scores[row, :hits].tolist(), strict=True))
            findings.append(Finding(ranking, terms[row], flops[row]))
        return findings

    def values(self, findings: Sequence[Finding]) -> dict[str, float]:
        """Return every measure, l0 and flops, the latter also by turn depth (l0_depth_D, flops_depth_D).

        Args:
            findings: one a turn, in the order of `turns`.
        """
        ids = [turn.query_id for turn in self.turns]
        rankings = {query_id: found.ranking for query_id, found in zip(ids, findings, strict=True)}
        names = tuple(dict.fromkeys((self._config.measure, *self._config.measures)))
        values = score_run(Run("student", rankings), self._qrels, names).means()
        depths = np.asarray([turn.depth for turn in self.turns])
        for name, costs in (("l0", [found.terms for found in findings]), ("flops", [found.flops for found in findings])):
            array = np.asarray(costs, dtype=np.float64)
            values[name] = float(array.mean())
            values |= {f"{name}_depth_{depth}": float(array[depths == depth].mean()) for depth in np.unique(depths).tolist()}
        return values


@dataclass
class Progress:
    """The best validation so far; JSON-able, part of the checkpoint.

    A student that holds the sparsity target is better than any that does not, or the best one would be of a step before the
    target was reached; of those that do not, the one that comes nearest is the best.

    Attributes:
        best_step: optimizer step of the best validation; None before the first.
        best_value: its measure; higher is better. Of equal values the earlier step is the best.
        since_best: validations since then.
        best_excess: by what share of its bound it exceeds the target; 0 where it holds it, or there is none.
    """

    best_step: int | None = None
    best_value: float = -np.inf
    since_best: int = 0
    best_excess: float = 0.0

    def add(self, step: int, value: float, excess: float = 0.0) -> bool:
        """Take a validation and return whether it is the best so far."""
        if self.best_step is None or (-excess, value) > (-self.best_excess, self.best_value):
            self.best_step, self.best_value, self.since_best, self.best_excess = step, value, 0, excess
            return True
        self.since_best += 1
        return False

    def is_over(self, patience: int | None) -> bool:
        """Return whether `patience` validations in a row brought nothing better; never before the target is held."""
        return patience is not None and self.since_best >= patience and self.best_excess == 0.0

    def state(self) -> dict[str, Any]:
        """Return the progress as JSON can hold it."""
        value = None if self.best_step is None else self.best_value
        return {
            "best_step": self.best_step,
            "best_value": value,
            "since_best": self.since_best,
            "best_excess": self.best_excess,
        }

    @staticmethod
    def of(state: dict[str, Any]) -> Progress:
        """Return the progress that `state` described."""
        if state["best_step"] is None:
            return Progress()
        # Checkpoints from before targets counted have no excess.
        excess = float(state.get("best_excess", 0.0))
        return Progress(int(state["best_step"]), float(state["best_value"]), int(state["since_best"]), excess)
