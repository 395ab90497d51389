"""A budget is kept, spent where it tells most, and a turn that needs no context is not paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import DistillConfig, OpenAiTeacherConfig, SpendConfig
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.teachers.pool import rewrites_artifact, teach
from raydistill.teachers.spending import Decision, Decisions, decide, disagreements
from tests.teachers.endpoint import prompt_of, said, serving

TURNS = tuple(Turn(f"a<::>{n}", n, f"a question {n}?", f"answer {n}") for n in range(1, 9))
QUERIES = list(ConversationSet((Conversation("a", TURNS),), {}, "f" * 64).queries())
ASK, OWN, OVER = Decision.ASK, Decision.SELF_CONTAINED, Decision.OVER_BUDGET


def spend(**fields: Any) -> SpendConfig:
    if fields.get("order") == "disagreement":
        fields = {"among": ("x", "y"), **fields}
    return SpendConfig.model_validate(fields)


def ten(_: ConversationalQuery) -> tuple[int, int]:
    return 7, 3


def kinds(decisions: Decisions) -> list[Decision]:
    assert list(decisions.of) == [query.query_id for query in QUERIES]
    return list(decisions.of.values())


def test_a_turn_without_a_history_is_its_own_rewrite() -> None:
    assert kinds(decide(QUERIES, spend(), ten)) == [OWN, *[ASK] * 7]
    assert kinds(decide(QUERIES, spend(skip="nothing", calls=2), ten)) == [ASK, ASK, *[OVER] * 6]


def test_so_is_one_that_a_student_reads_alike_without_it() -> None:
    agreement = {"a<::>3": 0.95, "a<::>5": 0.9, "a<::>6": 0.89}
    decisions = decide(QUERIES, spend(skip="self-contained", student="/s", agreement=0.9), ten, agreement)
    assert kinds(decisions) == [OWN, ASK, OWN, ASK, OWN, ASK, ASK, ASK]


def test_a_budget_goes_where_teachers_disagree() -> None:
    told = {"a<::>1": 1.0, "a<::>4": 0.8, "a<::>7": 0.9, "a<::>2": 0.1}
    decisions = decide(QUERIES, spend(order="disagreement", calls=3), ten, disagreement=told)
    assert kinds(decisions) == [OWN, ASK, OVER, ASK, OVER, OVER, ASK, OVER]
    assert decisions.counts()["ask"] == 3


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), min_size=8, max_size=8),
    st.integers(1, 300),
    st.integers(1, 9),
    st.floats(1e-6, 1e-3),
)
def test_no_limit_is_exceeded_and_the_estimates_add_up(
    costs: list[tuple[int, int]], tokens: int, calls: int, dollars: float
) -> None:
    own = dict(zip((query.query_id for query in QUERIES), costs, strict=True))
    settings = spend(calls=calls, tokens=tokens, dollars=dollars, prompt_price=1, generated_price=4)
    decisions = decide(QUERIES, settings, lambda query: own[query.query_id])
    asked = [key for key, decision in decisions.of.items() if decision is ASK]
    assert len(asked) <= calls
    assert decisions.tokens == sum(sum(own[key]) for key in asked) <= tokens
    assert decisions.dollars == pytest.approx(sum(own[key][0] + 4 * own[key][1] for key in asked) / 1e6)
    assert decisions.dollars <= dollars
    assert decisions.tokens_of_all == sum(map(sum, costs))
    # Nothing that would still fit is left out.
    for key, decision in decisions.of.items():
        if decision is OVER:
            price = (own[key][0] + 4 * own[key][1]) / 1e6
            assert (
                len(asked) == calls
                or decisions.tokens + sum(own[key]) > tokens
                or decisions.dollars + price > dollars * (1 - 1e-9)
            )


def test_disagreement_is_the_words_that_are_not_shared() -> None:
    rewrites = [{"q": "Who wrote it", "r": "a b"}, {"q": "who wrote Fidelio", "s": "c"}, {"q": "who wrote it"}]
    assert disagreements(rewrites) == {"q": pytest.approx((0.5 + 0.0 + 0.5) / 3)}
    assert disagreements([]) == {}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"skip": "self-contained"}, "skip is self-contained and student not set"),
        ({"student": "/s"}, "skip is first turns and student /s"),
        ({"order": "disagreement", "among": ("x",), "calls": 3}, "among names 1 teachers"),
        ({"order": "disagreement"}, "nothing is limited"),
        ({"among": ("x", "y")}, "only order: disagreement goes by it"),
        ({"dollars": 3}, "dollars is set, and no price"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spend(**fields)


def test_only_what_was_decided_is_asked_and_every_turn_has_its_row(ray_cluster: None, tmp_path: Path) -> None:
    settings = spend(order="disagreement", calls=3)
    told = {"a<::>4": 0.8, "a<::>7": 0.9, "a<::>2": 0.1}
    with serving(lambda prompt, before: said(f"who can tell of {prompt.splitlines()[-1].split()[-1]}")) as endpoint:
        teacher = OpenAiTeacherConfig(
            name="dear", base_url=endpoint.url, model="tiny", turns_per_task=3, retry_wait_s=0.01, spend=settings
        )
        decided_by = {"among/x": "1" * 64}
        artifact = teach(
            teacher, QUERIES, "f" * 64, str(tmp_path), decided_by, lambda: decide(QUERIES, settings, ten, None, told)
        )
        assert len(endpoint.bodies) == 3
        assert {prompt_of(body).splitlines()[-1] for body in endpoint.bodies} == {
            f"user: a question {n}?" for n in (2, 4, 7)
        }
    assert artifact == rewrites_artifact(teacher, "f" * 64, str(tmp_path), decided_by)
    assert artifact != rewrites_artifact(teacher, "f" * 64, str(tmp_path), {"among/x": "2" * 64})
    rows = pa.concat_tables(pq.read_table(artifact.fetch(part)) for part in artifact.manifest().parts).to_pylist()
    assert [row["query_id"] for row in rows] == [query.query_id for query in QUERIES]
    assert [row["failure"] for row in rows] == [None, None, "missing", None, "missing", "missing", None, "missing"]
    assert rows[0]["text"] == "a question 1?"
    assert rows[3]["text"] == "who can tell of 4?"
    metadata = artifact.manifest().metadata
    assert metadata["spend"] == {
        "ask": 3,
        "self_contained": 1,
        "over_budget": 4,
        "estimated_tokens": 30,
        "estimated_tokens_of_all": 80,
        "estimated_dollars": 0,
        "estimated_dollars_of_all": 0,
    }
    assert (metadata["counts"]["queries"], metadata["counts"]["over_budget"], metadata["counts"]["self_contained"]) == (
        8,
        4,
        1,
    )


def test_who_is_weighed_by_must_be_a_teacher_without_a_budget() -> None:
    base: dict[str, Any] = {"engine": "openai", "base_url": "http://h/v1", "model": "m"}
    dear = {**base, "name": "dear", "spend": {"order": "disagreement", "among": ["a", "dear"], "calls": 3}}
    plain = [{**base, "name": name} for name in "ab"]
    fields = {
        "run": "r",
        "root": "/r",
        "data": {"corpus": ["/c"], "train": {"conversations": "/t"}, "test": {"conversations": "/u", "qrels": "/q"}},
        "student": {"model": "m"},
        "teachers": [*plain, dear],
    }
    with pytest.raises(ValueError, match=r"teachers.dear.spend.among names 'dear', which is no teacher without a budget"):
        DistillConfig.model_validate(fields)
    dear["spend"]["among"] = ["a", "b"]
    assert DistillConfig.model_validate(fields).teachers[2].name == "dear"
