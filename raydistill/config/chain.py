"""The whole run: all sections together, and what must hold between them."""

from __future__ import annotations

from pydantic import Field, PositiveInt, field_validator, model_validator

from raydistill.config.data import DataConfig
from raydistill.config.evaluate import EvaluateConfig
from raydistill.config.fields import Location, Name, Operational, Section
from raydistill.config.index import IndexConfig, ScoreConfig
from raydistill.config.student import StudentConfig
from raydistill.config.teachers import TeacherConfig
from raydistill.config.train import TrainConfig


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
    data: DataConfig
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    student: StudentConfig
    index: IndexConfig = IndexConfig()
    score: ScoreConfig = ScoreConfig()
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
        names = [teacher.name for teacher in self.teachers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teachers: the name {twice[0]!r} is used twice; results are stored by name")
        unknown = [name for name in self.train.objective.teacher_names if name not in names]
        if unknown:
            raise ValueError(
                f"train.objective names the teacher {unknown[0]!r}, and there is none of that name; the teachers are "
                f"{', '.join(names)}"
            )
        return self

    @model_validator(mode="after")
    def _stopping_needs_validation(self) -> DistillConfig:
        if self.train.validation.patience is not None and self.data.validation is None:
            raise ValueError(
                "train.validation.patience stops training by validation, and data.validation is not set; set it (such as "
                "{share: 0.15}), or leave patience out"
            )
        return self
