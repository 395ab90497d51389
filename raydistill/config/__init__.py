"""The typed configuration of a run: one frozen model a stage, one for the chain. Loading lives in `config_loading`.

Every field is checked before Ray starts. Fields wrapped in `Operational[...]` say how a result is computed (workers,
batch sizes that do not change the outcome) and stay out of fingerprints; all the others are part of them. One module a
section; everything is imported from here.
"""

from raydistill.config.chain import DistillConfig, RayConfig
from raydistill.config.data import ConversationSource, DataConfig, TextConfig
from raydistill.config.documents import DocumentsConfig, LexicalDocumentsConfig, SpladeDocumentsConfig
from raydistill.config.evaluate import EvaluateConfig
from raydistill.config.fields import (
    OPERATIONAL,
    CommandLineValue,
    Fraction,
    Location,
    ModelSource,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Operational,
    Section,
    WorkerConfig,
    operational_fields,
    result_fields,
)
from raydistill.config.index import IndexConfig, ScoreConfig
from raydistill.config.sampling import SamplingConfig
from raydistill.config.student import StudentConfig
from raydistill.config.teachers import RecordedTeacherConfig, TeacherConfig, TransformersTeacherConfig
from raydistill.config.train import ObjectiveConfig, TrainConfig

__all__ = [
    "OPERATIONAL",
    "CommandLineValue",
    "ConversationSource",
    "DataConfig",
    "DistillConfig",
    "DocumentsConfig",
    "EvaluateConfig",
    "Fraction",
    "IndexConfig",
    "LexicalDocumentsConfig",
    "Location",
    "ModelSource",
    "Name",
    "NonNegativeFloat",
    "NonNegativeInt",
    "ObjectiveConfig",
    "Operational",
    "RayConfig",
    "RecordedTeacherConfig",
    "SamplingConfig",
    "ScoreConfig",
    "Section",
    "SpladeDocumentsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TextConfig",
    "TrainConfig",
    "TransformersTeacherConfig",
    "WorkerConfig",
    "operational_fields",
    "result_fields",
]
