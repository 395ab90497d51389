"""A student's section names what its head uses, and refuses what would change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raydistill.config import StudentConfig, result_fields


def test_heads_have_their_own_defaults_and_no_others() -> None:
    def fields(head: str) -> dict[str, Any]:
        config = StudentConfig(model="org/model", head=head)  # type: ignore[arg-type]
        named = ("active_share", "attention", "pooling", "table_start", "recency_parts")
        return {name: getattr(config, name) for name in named if getattr(config, name) is not None}

    assert fields("mlm") == {}
    assert fields("identity") == {"active_share": 0.003}
    assert fields("decoder") == {"active_share": 0.003, "attention": "bidirectional", "pooling": "max"}
    assert fields("table") == {"table_start": "idf", "recency_parts": 12}


@pytest.mark.parametrize("head", ["mlm", "identity", "decoder", "table"])
def test_a_section_survives_json(head: str) -> None:
    config = StudentConfig(model="org/model", head=head)  # type: ignore[arg-type]
    assert StudentConfig.model_validate(config.model_dump(mode="json")) == config
    assert StudentConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"active_share": 0.1}, "active_share is 0.1, but only head identity or decoder uses it and head is mlm"),
        ({"head": "table", "active_share": 0.1}, "head is table; remove active_share"),
        ({"head": "identity", "attention": "causal"}, "attention is 'causal', but only head decoder uses it"),
        ({"head": "identity", "pooling": "last"}, "only head decoder"),
        ({"pooling": "last"}, "head is mlm; take max or sum"),
        ({"head": "table", "pooling": "sum"}, "only head mlm or identity or decoder uses it and head is table"),
        ({"pooling": "mean"}, "Input should be 'max', 'sum' or 'last'"),
        ({"head": "decoder", "recency_parts": 3}, "only head table"),
        ({"table_start": "ones"}, "only head table"),
        ({"head": "table", "lora": {}}, "a table has no transformer"),
        ({"head": "table", "freeze": {"layers": 1}}, "a table has no transformer"),
        ({"head": "table", "gradient_checkpointing": True}, "a table has no transformer"),
        ({"lora": {}, "freeze": {"layers": 1}}, "remove freeze or lora"),
        ({"freeze": {}}, "freeze names nothing to keep"),
        ({"lora": {"rank": 0}}, "greater than 0"),
        ({"lora": {"dropout": 1.0}}, "less than 1"),
        ({"lora": {"targets": []}}, "must be a list of names"),
        ({"head": "identity", "active_share": 0.0}, "greater than 0"),
        ({"top_terms": 0}, "greater than 0"),
    ],
)
def test_what_would_change_nothing_or_make_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        StudentConfig.model_validate({"model": "org/model", **fields})
    assert message in str(raised.value)


def test_gradient_checkpointing_is_no_part_of_the_fingerprint_and_the_rest_is() -> None:
    def counted(**fields: Any) -> Any:
        return result_fields(StudentConfig.model_validate({"model": "org/model", **fields}))

    assert counted(gradient_checkpointing=True) == counted()
    for fields in (
        {"head": "identity"},
        {"pooling": "sum"},
        {"top_terms": 9},
        {"lora": {}},
        {"lora": {"rank": 4}},
        {"freeze": {"layers": 1}},
    ):
        assert counted(**fields) != counted()
    assert counted(lora={}) != counted(lora={"targets": ["q_proj"]})
