"""What the terms of an objective compute: pure functions of score tensors and masks, one module a family.

No encoder, no Ray, no I/O. The terms' parameters and text form live in `config.objective`; the penalties that keep
queries sparse in `distill.regularisers`.

Three rules hold for every term. A candidate whose score is absent has no part and no gradient. A query counts where the
term has something to compare on it (two scored candidates, a gold and a negative, a rewrite, ...), and the term is the
mean over the queries that count, 0 when none does. And the queries are those of the global batch, so a term is the same
at any number of workers.
"""

from raydistill.distill.objectives.combine import distillation_loss
from raydistill.distill.objectives.divergence import teacher_entropy
from raydistill.distill.objectives.scores import StepScores

__all__ = ["StepScores", "distillation_loss", "teacher_entropy"]
