"""What the student is trained to do, as values with a text form: `0.9*kld(tau=1, student_tau=4) + 0.1*infonce(tau=4)`.

Here are the terms, their parameters and the weighted sum of them; what the terms compute of score tensors lives in
`distill.objectives`. Notation: s_j is the student's score of candidate j of a query, t_j the teachers' combined score of
it (or one teacher's own, where the term names a `teacher`). Every term is a mean over the queries of the global batch
that it has something to learn from; a candidate whose score is absent has no part in any of them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from raydistill.config.expressions import Value, format_sum, number, parse_sum

_EXAMPLE = "0.9*kld(tau=1) + 0.1*infonce(tau=4)"
_TEACHER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Term(Value):
    """Base of the terms: what each needs of a training step."""

    needs_rewrites: ClassVar[bool] = False
    """Whether the term reads the rewrites' vectors."""

    @property
    def fewest_passages(self) -> int:
        """Fewest passages of a query that the term can learn from."""
        return 2

    @property
    def needs_batch_scores(self) -> bool:
        """Whether the term reads the scores of the other queries' passages."""
        return False

    @property
    def part_name(self) -> str:
        """The name under which the term's value is logged."""
        return self.NAME

    def _positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{self.NAME}.{name} is {number(value)}; it must be finite and > 0")

    def _finite(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{self.NAME}.{name} is {number(value)}; it must be finite")


@dataclass(frozen=True, kw_only=True)
class ScoreTerm(Term):
    """Base of the terms that follow a teacher's scores."""

    teacher: str | None = None
    """Name of the one teacher whose own scores are followed; None follows the combined scores."""

    def check(self) -> None:
        if self.teacher is not None and (not _TEACHER.fullmatch(self.teacher) or self.teacher == "none"):
            raise ValueError(
                f"{self.NAME}.teacher is {self.teacher!r}; it must be a teacher's name: letters, digits, '.', '_' and '-', "
                "and not 'none'"
            )

    @property
    def part_name(self) -> str:
        return self.NAME if self.teacher is None else f"{self.NAME}.{self.teacher}"


@dataclass(frozen=True, kw_only=True)
class Kld(ScoreTerm):
    """KL divergence from the student's to the teachers' distribution over a query's candidates.

    sum_j p_j (log p_j - log q_j), p = softmax(t / tau), q = softmax(s / student_tau); not multiplied by tau squared.
    DiSCo (Lupart et al., arXiv 2410.14609). Candidates drawn with unequal probabilities enter both softmaxes with their
    inverse inclusion probability, see `distill.objectives.divergence`.
    """

    NAME = "kld"
    tau: float = 1.0
    """Temperature of the teachers, and of the student unless it has its own."""
    student_tau: float | None = None
    """Temperature of the student, where its scores live on another scale than the teachers'."""

    def check(self) -> None:
        super().check()
        self._positive("tau", "student_tau")


@dataclass(frozen=True, kw_only=True)
class ListwiseCe(ScoreTerm):
    """Softmax cross-entropy of the student's list against a teacher's, usually a cross-encoder's.

    - sum_j p_j log q_j with p and q as in kld: ListNet's top-one loss (Cao et al., ICML 2007). It is the KLD plus the
    entropy of p, so its gradient is that of kld at the same temperatures; its value is what differs.
    """

    NAME = "listwise_ce"
    tau: float = 1.0
    """Temperature of the teacher, and of the student unless it has its own."""
    student_tau: float | None = None
    """Temperature of the student; None takes tau."""

    def check(self) -> None:
        super().check()
        self._positive("tau", "student_tau")


@dataclass(frozen=True, kw_only=True)
class InfoNce(Term):
    """Cross-entropy of each gold passage against negatives (van den Oord et al., arXiv 1807.03748; DPR, 2004.04906).

    mean over the query's golds g of log(1 + sum_n exp((s_n - s_g) / tau)). The other golds of a query are never its
    negatives. The batch is the global one: losses are computed on the query vectors gathered from all workers, so every
    worker's passages are negatives of every query and nothing depends on the number of workers.
    """

    NAME = "infonce"
    tau: float = 1.0
    """Temperature of the student's scores."""
    negatives: Literal["batch", "own", "golds"] = "batch"
    """batch: every passage drawn in the global batch; own: those drawn for the query; golds: the first
    gold of each other query."""

    def check(self) -> None:
        self._positive("tau")

    @property
    def needs_batch_scores(self) -> bool:
        return self.negatives != "own"

    @property
    def fewest_passages(self) -> int:
        return 1 if self.needs_batch_scores else 2


@dataclass(frozen=True, kw_only=True)
class MarginMse(ScoreTerm):
    """Mean squared difference of the student's and the teachers' margins (Hofstätter et al., arXiv 2010.02666).

    mean over pairs (i, j) of ((s_i - s_j) - scale (t_i - t_j))^2: every gold against every candidate that is none, or
    all pairs of candidates.
    """

    NAME = "margin_mse"
    pairs: Literal["gold", "all"] = "gold"
    """gold: each gold passage with each candidate that is none; all: every two candidates, golds or not."""
    scale: float = 1.0
    """Factor on the teachers' margins, where the student's scores live on another scale."""

    def check(self) -> None:
        super().check()
        self._positive("scale")


@dataclass(frozen=True, kw_only=True)
class Bce(ScoreTerm):
    """Binary cross-entropy of each candidate alone against a calibrated soft label.

    mean_j of -(y_j log z_j + (1 - y_j) log(1 - z_j)), y = sigmoid(t / tau + shift), z = sigmoid(s / student_tau +
    student_shift). tau and shift are Platt's scaling (Platt, 1999) of the teacher's scores to a probability of relevance.
    Dot products of non-negative vectors are never below 0, so without a negative shift no label is below one half.
    """

    NAME = "bce"
    tau: float = 1.0
    """Temperature of the teacher, and of the student unless it has its own."""
    shift: float = 0.0
    """Logit that a teacher score of 0 stands for, and a student score of 0 unless it has its own."""
    student_tau: float | None = None
    """Temperature of the student; None takes tau."""
    student_shift: float | None = None
    """Logit that a student score of 0 stands for; None takes shift."""

    def check(self) -> None:
        super().check()
        self._positive("tau", "student_tau")
        self._finite("shift", "student_shift")

    @property
    def fewest_passages(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class PartialRanking(ScoreTerm):
    """The teachers' order among the candidates that are not gold; gold passages have no part in it.

    mean over the pairs with t_i - t_j > gap of log(1 + exp(-(s_i - s_j) / student_tau)) (logistic), or of
    max(0, margin - (s_i - s_j) / student_tau) (hinge; Joachims, KDD 2002). To be mixed with a term that places the gold.
    """

    NAME = "partial_ranking"
    form: Literal["logistic", "hinge"] = "logistic"
    gap: float = 0.0
    """Teacher margin that a pair must exceed to count; smaller differences are taken for noise."""
    margin: float = 1.0
    """hinge only: margin from which on a pair counts as ordered, in units of student_tau."""
    student_tau: float = 1.0
    """Temperature of the student."""

    def check(self) -> None:
        super().check()
        self._positive("student_tau", "margin")
        self._finite("gap")
        if self.gap < 0:
            raise ValueError(f"{self.NAME}.gap is {number(self.gap)}; it must be >= 0")
        if self.form != "hinge" and self.margin != 1.0:
            raise ValueError(f"{self.NAME}.margin has no part in form={self.form}; leave it out, or take form=hinge")

    @property
    def fewest_passages(self) -> int:
        return 3  # one of them may be gold, which has no part


@dataclass(frozen=True, kw_only=True)
class RankNet(ScoreTerm):
    """The teachers' order among all candidates (RankNet, Burges et al., ICML 2005).

    weighted mean over the pairs with t_i > t_j of log(1 + exp(-(s_i - s_j) / student_tau)). With weight=ndcg a pair
    counts by what swapping it would change in the student's nDCG (LambdaRank, Burges et al., NIPS 2006; as a loss, Wang
    et al., CIKM 2018): |g_i - g_j| |1 / log2(1 + r_i) - 1 / log2(1 + r_j)|, where the gain g is the teachers' score
    brought to 0..1 over the query's candidates and r the student's present rank.
    """

    NAME = "ranknet"
    weight: Literal["none", "ndcg"] = "none"
    student_tau: float = 1.0
    """Temperature of the student."""

    def check(self) -> None:
        super().check()
        self._positive("student_tau")


@dataclass(frozen=True, kw_only=True)
class RepMse(Term):
    """Squared distance of the student's query vector from the vector of the rewrite.

    sum_v (q_v - scale r_v)^2, a sum and no mean over the vocabulary: nearly all entries are 0 in both, and dividing by
    their number would only hide the loss. Distillation of a query tower, as in ScalingNote (arXiv 2411.15766).
    """

    NAME = "rep_mse"
    needs_rewrites = True
    scale: float = 1.0
    """Factor on the rewrite's vector, where the student's weights live on another scale."""

    def check(self) -> None:
        self._positive("scale")

    @property
    def fewest_passages(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class RepCosine(Term):
    """1 - cos(q, r) of the student's query vector q and the vector r of the rewrite; blind to their scales.

    Cosine alignment of a query tower, as in NanoVDR (arXiv 2603.12824).
    """

    NAME = "rep_cosine"
    needs_rewrites = True

    @property
    def fewest_passages(self) -> int:
        return 0


TERMS: dict[str, type[Term]] = {
    kind.NAME: kind for kind in (Kld, ListwiseCe, InfoNce, MarginMse, Bce, PartialRanking, RankNet, RepMse, RepCosine)
}
"""The terms by name."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms; a field of a configuration accepts its text and dumps it.

    Attributes:
        terms: (weight, term) pairs; weights are finite and > 0, no term is there twice.
    """

    terms: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"an objective needs at least one term; {_EXAMPLE!r} is an example")
        seen: set[Term] = set()
        for weight, term in self.terms:
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"the weight of {term} is {number(weight)}; it must be finite and > 0, or the term left out"
                )
            if term in seen:
                raise ValueError(f"{term} is there twice; add the weights")
            seen.add(term)
        for term in seen:
            if isinstance(term, ListwiseCe) and Kld(**dataclasses.asdict(term)) in seen:
                raise ValueError(
                    f"kld and {term} with the same parameters have the same gradient; keep one of them and add the weights"
                )

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Return the objective that a text describes; a weight that is left out is 1. Raises ValueError with a sentence."""
        if not text.strip():
            raise ValueError(f"the objective is empty; {_EXAMPLE!r} is an example")
        return cls(parse_sum(text, TERMS))

    def __str__(self) -> str:
        return format_sum(self.terms)

    @property
    def needs_batch_scores(self) -> bool:
        """Whether a term reads the scores of every query and every passage of the batch."""
        return any(term.needs_batch_scores for _, term in self.terms)

    @property
    def needs_rewrites(self) -> bool:
        """Whether a term reads the rewrites' vectors."""
        return any(term.needs_rewrites for _, term in self.terms)

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The teachers that terms name, each once, in the order of the terms."""
        named = (term.teacher for _, term in self.terms if isinstance(term, ScoreTerm))
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def hears_everybody(self) -> bool:
        """Whether a term learns from the combination of all teachers' scores."""
        return any(isinstance(term, ScoreTerm) and term.teacher is None for _, term in self.terms)

    @property
    def part_names(self) -> tuple[str, ...]:
        """A name for each term, to log its value under: NAME or NAME.teacher, numbered from 2 where that repeats."""
        names: list[str] = []
        for _, term in self.terms:
            name, count = term.part_name, 1
            while name in names:
                count += 1
                name = f"{term.part_name}.{count}"
            names.append(name)
        return tuple(names)

    def check_batch(self, passages: int, queries: int) -> None:
        """Raise ValueError with a sentence when a term could never learn anything from batches of this shape.

        Args:
            passages: most passages of a query. queries: of a global batch.
        """
        for _, term in self.terms:
            if passages < term.fewest_passages:
                raise ValueError(
                    f"{term} compares passages of a query and would learn nothing from {passages} a query; raise "
                    f"sampling.passages to {term.fewest_passages} or more, or leave the term out"
                )
            if isinstance(term, InfoNce) and queries * (1 if term.negatives == "golds" else passages) < 2:
                raise ValueError(f"{term} takes other queries' passages for negatives; raise global_batch to 2 or more")

    def check_teachers(self, names: Collection[str]) -> None:
        """Raise ValueError with a sentence when a term names a teacher that is none of `names`."""
        for name in self.teacher_names:
            if name not in names:
                raise ValueError(f"the objective names the teacher {name!r}; there are {', '.join(names)}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._from_config,
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def _from_config(cls, value: Any) -> Objective:
        if isinstance(value, Objective):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise ValueError(f"{value!r} is no objective; write it as text, such as {_EXAMPLE!r}")
