"""The whole run: all sections together, and what must hold between them."""

from __future__ import annotations

from pydantic import Field, PositiveInt, field_validator, model_validator

from raydistill.config.data import DataConfig
from raydistill.config.evaluate import EvaluateConfig
from raydistill.config.fields import Added, Location, Name, Operational, Section
from raydistill.config.index import IndexConfig, ScoreConfig
from raydistill.config.sampling import SamplingConfig, Window
from raydistill.config.scorers import CONVERSATION_FORMS, ScorerConfig
from raydistill.config.student import StudentConfig
from raydistill.config.teachers import TeacherConfig
from raydistill.config.train import TrainConfig, ValidationConfig

_FEWEST_READ = 3.0
"""Passages of a turn that a scorer of its own must have read on average: two can be compared, and many turns have fewer."""


class RayConfig(Section):
    """The Ray cluster the job uses."""

    address: Operational[str | None] = None
    """None joins the cluster that RAY_ADDRESS names (`ray job submit` sets it) or else starts a local one; auto joins the
    one that `ray start` began on this machine."""
    local_cpus: Operational[PositiveInt | None] = None
    """CPUs of the local cluster when one is started; None takes the machine's."""
    env_vars: Operational[dict[str, str]] = Field(default_factory=dict)
    """Environment variables of every worker, for instance of the object store. Never put secrets here."""


class DistillConfig(Section):
    """The whole chain: teach, index, score, train, evaluate."""

    run: Name
    """Name of the run; its resolved config, checkpoints and report lie under {root}/runs/{run}."""
    root: Location
    """Run root: file:///absolute/path or s3://bucket/prefix."""
    single_writer: Operational[bool] = False
    """For stores whose conditional writes do not work: take a lease on the root that only one run at a time can hold, and
    rely on it instead. Weaker than conditional writes (raydistill.storage.lease says how), so not for other stores."""
    data: DataConfig
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    student: StudentConfig
    index: IndexConfig = IndexConfig()
    score: ScoreConfig = ScoreConfig()
    scorers: Added[tuple[ScorerConfig, ...]] = ()
    """Models that read the best candidates of the training turns; each becomes one more teacher of scores."""
    train: TrainConfig = TrainConfig()
    rounds: PositiveInt = 1
    """Rounds of mining and training. From the second on, the student of the round before mines too (its own top passages
    join the candidates, as in ANCE, Xiong et al., arXiv 2007.00808) and is what training goes on from."""
    evaluate: EvaluateConfig = EvaluateConfig()
    ray: Operational[RayConfig] = RayConfig()

    @field_validator("root")
    @classmethod
    def _supported_root(cls, root: str) -> str:
        scheme, _, rest = root.partition("://")
        known = (scheme == "s3" and rest.strip("/")) or (scheme == "file" and rest.startswith("/")) or root.startswith("/")
        if not known:
            raise ValueError("must be s3://bucket/prefix, file:///absolute/path or a path")
        return root.rstrip("/")

    @model_validator(mode="after")
    def _teachers_have_their_own_names(self) -> DistillConfig:
        names = [*(teacher.name for teacher in self.teachers), *(scorer.name for scorer in self.scorers)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teachers: the name {twice[0]!r} is used twice; results are stored by name")
        plain = [teacher.name for teacher in self.teachers if teacher.engine == "recorded" or teacher.spend is None]
        for teacher in self.teachers:
            spend = None if teacher.engine == "recorded" else teacher.spend
            strange = [name for name in (spend.among if spend else ()) if name not in plain]
            if strange:
                raise ValueError(
                    f"teachers.{teacher.name}.spend.among names {strange[0]!r}, which is no teacher without a budget of its "
                    f"own; those are {', '.join(plain) or 'none'}"
                )
        readable = [*CONVERSATION_FORMS, *(teacher.name for teacher in self.teachers)]
        for scorer in self.scorers:
            if scorer.query not in readable:
                raise ValueError(
                    f"scorers: {scorer.name} is to read {scorer.query!r} as the query; it can read {', '.join(readable)}"
                )
        if self.rounds > 1 and "student" in names:
            raise ValueError(
                "teachers: with rounds above 1 the name 'student' is taken by the student that mines too; rename it"
            )
        unknown = [name for name in self.train.objective.teacher_names if name not in names]
        if unknown:
            raise ValueError(
                f"train.objective names the teacher {unknown[0]!r}, and there is none of that name; the teachers are "
                f"{', '.join(names)}"
            )
        weights = self.train.teacher_weights or {}
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ValueError(
                f"train.teacher_weights names the teacher {unknown[0]!r}, and there is none of that name; the teachers are "
                f"{', '.join(names)}"
            )
        if not any(weights.get(name, 1.0) for name in names):
            raise ValueError("train.teacher_weights are all 0, so nobody would teach; give one of them a weight")
        return self

    @model_validator(mode="after")
    def _rewrites_encoded_by_a_student_are_learned_from(self) -> DistillConfig:
        if not self.score.student_encodes_rewrites:
            return self
        reason = None
        if self.rounds == 1:
            reason = "rounds is 1, so no earlier student could encode them; set rounds to 2 or more"
        elif self.train.combine in ("max", "min"):
            reason = (
                f"train.combine is {self.train.combine}, which compares lists whose levels differ by who encoded the text: "
                "take mean, or one that scales"
            )
        elif not (self.train.objective.hears_everybody or self.train.objective.needs_rewrites):
            reason = (
                "no term of train.objective follows the combined scores of the teachers or their rewrites' vectors, so "
                "nothing would learn from them; add one, such as kld without teacher="
            )
        if reason is not None:
            raise ValueError(f"score.student_encodes_rewrites is set, and {reason}")
        return self

    @model_validator(mode="after")
    def _validation_has_turns(self) -> DistillConfig:
        if self.data.validation is not None:
            return self
        if self.train.validation.patience is not None:
            raise ValueError(
                "train.validation.patience stops training by validation, and data.validation is not set; set it (such as "
                "{share: 0.15}), or leave patience out"
            )
        if self.train.validation != ValidationConfig():
            raise ValueError(
                "train.validation is set and data.validation is not, so nothing would be validated; set data.validation "
                "(such as {share: 0.15}), or leave train.validation out"
            )
        return self

    @model_validator(mode="after")
    def _sampling_can_act(self) -> DistillConfig:
        sampling, miners = self.train.sampling, len(self.teachers) + (self.rounds > 1)
        most = miners * self.score.top_k
        if isinstance(sampling.policy, Window) and sampling.policy.first > most:
            raise ValueError(
                f"train.sampling.policy is {sampling.policy}, and a query has about {most} candidates at most (score.top_k "
                f"{self.score.top_k}, {miners} rankings), so the window is empty; lower first or raise score.top_k"
            )
        if sampling.passages > most + (sampling.gold != "none"):
            raise ValueError(
                f"train.sampling.passages is {sampling.passages}, and a query has about {most} candidates at most "
                f"(score.top_k {self.score.top_k}, {miners} rankings), so no step could draw as many; lower it or raise "
                "score.top_k"
            )
        if sampling.student_top and self.rounds == 1:
            raise ValueError(
                f"train.sampling.student_top is {sampling.student_top}, and with rounds: 1 there is no earlier student, so "
                "it would change nothing; set rounds: 2, or leave it out"
            )
        self._check_scored(sampling)
        self._check_named_scorers(sampling)
        if sampling.batches == "source" and len(self.data.train) == 1:
            raise ValueError(
                "train.sampling.batches is source, and data.train has one source only, so it would change nothing; take "
                "mixed or depth"
            )
        return self

    def _check_scored(self, sampling: SamplingConfig) -> None:
        """Raise ValueError where the passages that every heard scorer has read are too few to draw from."""
        weights = self.train.teacher_weights or {}
        heard = [scorer for scorer in self.scorers if weights.get(scorer.name, 1.0)]
        if not heard:
            return
        least = min(heard, key=lambda scorer: scorer.depth)
        first = sampling.policy.first if isinstance(sampling.policy, Window) else 1
        if sampling.passages > least.depth + (sampling.gold != "none") or first > least.depth:
            raise ValueError(
                f"scorers: {least.name} reads {least.depth} candidates of a turn, and train.sampling wants "
                f"{sampling.passages} passages from rank {first} on; train.combine leaves out what one of its teachers has "
                "not scored, so raise the scorer's depth, draw less, or leave it out of the combination "
                f"(train.teacher_weights: {{{least.name}: 0}})"
            )

    def _check_named_scorers(self, sampling: SamplingConfig) -> None:
        """Raise ValueError where what is drawn is seldom what a scorer that a term names has read."""
        for scorer in self.scorers:
            if scorer.name not in self.train.objective.teacher_names:
                continue
            read = sampling.drawn_within(scorer.depth, max(self.score.top_k, scorer.depth))
            if read < _FEWEST_READ:
                raise ValueError(
                    f"train.objective names {scorer.name}, which reads the {scorer.depth} best candidates of a turn, and of "
                    f"the {sampling.passages} passages that train.sampling draws it has read about {read:.1f}, so most "
                    f"turns would teach nothing of it; draw from what it reads, such as policy: "
                    f"'window(first={sampling.top + 1}, last={scorer.depth})', or raise scorers.{scorer.name}.depth"
                )

    @model_validator(mode="after")
    def _top_terms_leave_something_to_penalise(self) -> DistillConfig:
        if self.student.top_terms is not None:
            try:
                self.train.regularisation.check_most_terms(self.student.top_terms)
            except ValueError as error:
                raise ValueError(f"train.regularisation {error}") from None
        return self

    @model_validator(mode="after")
    def _head_has_what_training_sets(self) -> DistillConfig:
        if self.student.head == "mlm" and self.train.head_learning_rate is not None:
            raise ValueError(
                f"train.head_learning_rate is {self.train.head_learning_rate:g}, and the head mlm has no parameters of its "
                "own beside the model's; leave it out, or set train.learning_rate"
            )
        if self.student.head == "table" and self.train.dropout is not None:
            raise ValueError(f"train.dropout is {self.train.dropout:g}, and a table has nothing to drop out; leave it out")
        return self
