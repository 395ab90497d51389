"""The field types all sections share: what counts for fingerprints, how locations become absolute, worker pools."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)


class _Mark:
    """Annotation that keeps a field out of fingerprints."""


OPERATIONAL = _Mark()
ADDED = _Mark()
T = TypeVar("T")
Operational = Annotated[T, OPERATIONAL]
Added = Annotated[T, ADDED]
"""A later field, which counts where it is not the default: results from before it was there keep their fingerprints."""


_ENCODERS = ("/artifacts/student/", "/artifacts/document-encoder/")


def is_encoder_address(source: str) -> bool:
    """Whether a model is named by the address of a finished student or document encoder in a run root."""
    return any(place in source for place in _ENCODERS)


class CommandLineValue(str):
    """A string given on the command line: a relative path in it starts at the current directory."""


def _absolute_location(value: Any, info: ValidationInfo) -> Any:
    """Make a relative path absolute: Ray workers run elsewhere and could not resolve it."""
    if not isinstance(value, str) or "://" in value or value.startswith(("/", "package:")):
        return value
    if scheme := re.match(r"(s3|file):/", value):
        start = {"s3": "s3://", "file": "file:///"}[scheme[1]]
        raise ValueError(f"{value!r} has one slash where a URI has two; write {start}{value[scheme.end() :]}")
    if value.startswith("~"):
        try:
            return str(Path(value).expanduser())
        except RuntimeError as error:
            raise ValueError(f"{value!r} names a home folder that is not known here; give an absolute path") from error
    folder = (info.context or {}).get("folder") if not isinstance(value, CommandLineValue) else Path.cwd()
    if folder is None:
        raise ValueError(f"{value!r} is a relative path; give a URI or an absolute path")
    return str((Path(folder) / value).resolve())


def _absolute_model(value: Any, info: ValidationInfo) -> Any:
    """Make a model folder given as a relative path absolute: ./folder, ../folder, and a name under which a model lies there.
    Anything else may be a hub id and stays."""
    if not isinstance(value, str) or value.startswith(("/", "package:")):
        return value
    if value.startswith((".", "~")) or is_encoder_address(value):
        return _absolute_location(value, info)
    folder = (info.context or {}).get("folder") if not isinstance(value, CommandLineValue) else Path.cwd()
    if folder is not None and (Path(folder) / value / "config.json").is_file():
        return str((Path(folder) / value).resolve())
    return value


# Where something lies is no part of a fingerprint; the stages put the content's own hash in its place.
Location = Annotated[str, OPERATIONAL, BeforeValidator(_absolute_location)]
"""A URI or path; relative paths start at the configuration file's folder."""
ModelSource = Annotated[str, OPERATIONAL, BeforeValidator(_absolute_model)]
"""A hub id, a folder, package:NAME/FOLDER for a model inside an installed Python package, or the address of a finished
student or document encoder, ROOT/artifacts/student/NAME-ID (see model_source)."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Section(BaseModel):
    """Base of every section: immutable, unknown fields refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class WorkerConfig(Section):
    """A pool of Ray actors."""

    actors: Operational[PositiveInt] = 1
    """Number of actors."""
    cpus: Operational[PositiveFloat] = 1.0
    """CPUs reserved by each actor; also its number of compute threads."""
    gpus: Operational[NonNegativeFloat] = 0.0
    """GPUs reserved by each actor; fractions share one."""

    @property
    def fewest_actors(self) -> int:
        """With how many actors the work can be done."""
        return self.actors

    @model_validator(mode="after")
    def _whole_gpus(self) -> WorkerConfig:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is {self.gpus:g}: an actor has whole GPUs or a fraction of one; use a whole number")
        return self


class PoolConfig(WorkerConfig):
    """A pool of Ray actors that may begin small."""

    min_actors: Operational[PositiveInt | None] = None
    """The pool starts with this many and grows to `actors` while shards wait and the cluster has room; None: all at once."""

    @property
    def fewest_actors(self) -> int:
        """With how many actors the work can be done; never more than `actors`."""
        return min(self.min_actors or self.actors, self.actors)

    @model_validator(mode="after")
    def _range(self) -> PoolConfig:
        if self.min_actors is not None and self.min_actors > self.actors:
            raise ValueError(f"min_actors is {self.min_actors}, more than actors ({self.actors}); lower it, or raise actors")
        return self


def operational_fields(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields that always stay out of fingerprints."""
    return frozenset(name for name, field in model.model_fields.items() if OPERATIONAL in field.metadata)


def result_fields(section: Any) -> Any:
    """Return a plain structure of the fields that change the result, recursively; the input of fingerprints."""
    if isinstance(section, BaseModel):
        fields, skipped = type(section).model_fields, operational_fields(type(section))
        counted = {name: getattr(section, name) for name in sorted(fields) if name not in skipped}
        return {
            name: result_fields(value)
            for name, value in counted.items()
            if not (ADDED in fields[name].metadata and value == fields[name].default)
        }
    if isinstance(section, (tuple, list)):
        return [result_fields(item) for item in section]
    # Objectives, policies and the like are dataclasses with a text form, which says all that they are.
    return str(section) if is_dataclass(section) else section
