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
        return self
