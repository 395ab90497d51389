"""The configuration of a document encoder's training: what cannot work is refused with the field and the fix."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import ValidationError

from raydistill.config import (
    DocumentTrainingConfig,
    LearnedDocumentsConfig,
    RecordedRunConfig,
    StudentConfig,
    result_fields,
)
from raydistill.errors import ConfigError
from raydistill.preflight import _check_learned

RUN = {"name": "splade", "run": "/run.trec"}


def test_a_configuration_survives_its_own_text_form() -> None:
    documents = LearnedDocumentsConfig.model_validate(
        {
            "model": "m",
            "training": {
                "runs": [RUN, {"name": "rewritten", "run": "/b.trec", "queries": "rewrites", "rewrites": "/b.jsonl"}],
                "objective": "kld(teacher=recorded, tau=0.5) + 0.1*infonce(tau=4)",
                "passage_regularisation": {"terms": "0.01*flops", "target": "l0<=120"},
            },
        }
    )
    assert LearnedDocumentsConfig.model_validate(documents.model_dump(mode="json")) == documents


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"own_queries": 0}, "neither runs nor own_queries"),
        ({"runs": [RUN], "run_share": 0.0}, "run_share is 0"),
        ({"runs": [RUN, RUN]}, "the name 'splade' is used twice"),
        ({"objective": "kld(teacher=dense)"}, "objective names the teacher 'dense', but this training has lexical"),
        ({"objective": "kld(teacher=recorded)"}, "recorded needs runs"),
        ({"runs": [RUN], "objective": "kld(teacher=recorded)", "passages": 2}, "use 3 or more"),
        ({"lexical_weight": 0.0, "dense_teacher": {"model": "m"}, "objective": "kld"}, "greater than 0"),
        ({"lexical_weight": 0.03}, "lexical_weight is 0.03 and there is no dense_teacher"),
        ({"lexical_weight": 0.03, "dense_teacher": {"model": "m"}}, "so it would change nothing; take teacher= out of one"),
        ({"objective": "kld + rep_mse"}, "which no document training has"),
        ({"passage_regularisation": {"target": "flops<=2"}}, "passage_regularisation may hold a target for l0 only"),
        ({"query_regularisation": {"target": "l0<=20", "per_depth": True}}, "passages have no turn depth"),
        ({"zero_stage": 3, "cache_gradients": False}, "cache_gradients is false"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"workers": {"gpus": 0.5}}, "workers.gpus is 0.5: a training worker computes on the CPU"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DocumentTrainingConfig.model_validate(fields)


def test_a_bias_that_leaves_no_term_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"active_share\n.*greater than 0"):
        LearnedDocumentsConfig.model_validate({"model": "m", "head": "identity", "active_share": 0.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_terms": 600}, "top_terms is 600, but the index keeps max_terms 512"),
        (
            {"top_terms": 100, "training": {"passage_regularisation": {"target": "l0<=120"}}},
            r"training\.passage_regularisation holds the target l0<=120, and no vector has more than 100 terms",
        ),
        (
            {"top_terms": 20, "training": {"query_regularisation": {"terms": "0.1*l0flops(terms=20)"}}},
            r"training\.query_regularisation holds l0flops\(terms=20\), which penalises vectors of more than 20 terms",
        ),
    ],
)
def test_what_could_never_act_beside_top_terms_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LearnedDocumentsConfig.model_validate({"model": "m", **fields})
    documents = LearnedDocumentsConfig.model_validate({"model": "m", **fields, "top_terms": 130, "max_terms": 130})
    assert documents.starting_model().top_terms == 130


@pytest.mark.parametrize(
    ("pooling", "student", "refused"),
    [("sum", None, False), ("sum", "sum", False), (None, "sum", True), ("sum", "max", True)],
)
def test_a_student_that_starts_from_the_encoder_pools_as_it_does(pooling: Any, student: Any, refused: bool) -> None:
    documents = LearnedDocumentsConfig(model="m", head="identity", pooling=pooling)
    assert documents.starting_model().pooling == pooling
    with pytest.raises(ConfigError, match=r"leave student\.pooling out") if refused else nullcontext():
        _check_learned(documents, StudentConfig(model="m", head="identity", pooling=student))
    apart = documents.model_copy(update={"starts_student": False})
    _check_learned(apart, StudentConfig(model="m", head="identity", pooling=student))


@pytest.mark.parametrize(("queries", "rewrites"), [("rewrites", None), ("last_turn", "/r.jsonl")])
def test_rewrites_belong_to_runs_that_were_made_with_them(queries: str, rewrites: str | None) -> None:
    with pytest.raises(ValidationError, match="a file of rewrites belongs to queries: rewrites"):
        RecordedRunConfig.model_validate({**RUN, "queries": queries, "rewrites": rewrites})


def test_how_a_result_is_computed_does_not_name_it() -> None:
    settings = [
        DocumentTrainingConfig.model_validate(fields)
        for fields in ({}, {"chunk": 4, "cache_gradients": False, "workers": {"actors": 2}, "log_steps": 1}, {"steps": 7})
    ]
    assert result_fields(settings[0]) == result_fields(settings[1]) != result_fields(settings[2])


def test_the_engine_is_asked_for_whole_chunks_on_every_worker() -> None:
    training = DocumentTrainingConfig.model_validate(
        {"global_batch": 5, "passages": 3, "chunk": 4, "workers": {"actors": 2}}
    )
    assert training.texts == 20
    assert training.loop_settings().global_batch == 24
