"""What a teacher is worth: each alone ranks as its scores say, combinations as they are defined; pairs of rewrites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.config import EvaluateConfig
from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.ablation import BY_GOLD, ablation
from raydistill.evaluation.comparison import comparison_json, comparison_page, console_table
from raydistill.evaluation.preferences import SCHEMA, check_path, judged_turns, preference_pairs, write_preferences
from raydistill.index.candidates import candidate_scores
from raydistill.index.lookup import passage_names
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.teachers.combine import COMBINATIONS, combine
from raydistill.teachers.feedback import rewards
from raydistill.teachers.prompts import find_template
from raydistill.teachers.rewriting import REWRITE_SCHEMA, Rewrite, rewrite_table
from tests.distill.conftest import build_index, put_candidates

MEASURES = ("nDCG@10", "R@5", "RR")
CONFIG = EvaluateConfig(measures=MEASURES, depth=20, bootstrap_samples=100)


@pytest.fixture(scope="module")
def mined(tmp_path_factory) -> tuple[Artifact, IndexVersion]:
    root = str(tmp_path_factory.mktemp("root"))
    return put_candidates(root), build_index(root)


def rows(candidates: Artifact) -> dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    found = {}
    for part in candidates.manifest().parts:
        table = pq.read_table(candidates.fetch(part))
        for row, fields in enumerate(table.to_pylist()):
            found[fields["query_id"]] = (fields, *candidate_scores(table, row))
    return found


@pytest.fixture(scope="module")
def qrels(mined) -> dict[str, dict[str, int]]:
    """The gold passage of every query that has one, graded, and one that nobody retrieves."""
    found = {}
    for number, (query_id, (fields, _, _)) in enumerate(rows(mined[0]).items()):
        if fields["gold"]:
            found[query_id] = {f"p{fields['gold'][0]}": 1 + number % 2, "p59": 0, "not in the corpus": 1}
    return found


def mean_of(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], measure: str) -> float:
    values = dict.fromkeys(qrels, 0.0)
    parsed = ir_measures.parse_measure(measure)
    values.update((each.query_id, each.value) for each in ir_measures.iter_calc([parsed], qrels, run))
    return float(np.mean(list(values.values())))


def test_every_ranking_is_measured_as_it_is_defined(mined, qrels):
    candidates, index = mined
    found = ablation(candidates, index, qrels, CONFIG)
    names = [row.name for row in found.rows]
    assert names == ["a", "b", *COMBINATIONS, BY_GOLD]
    assert found.queries == len(qrels)
    for row in found.rows:
        run: dict[str, dict[str, float]] = {}
        for query_id in qrels:
            fields, passages, scores = rows(candidates)[query_id]
            if row.name in ("a", "b"):
                combined = scores["ab".index(row.name)]
            elif row.name == BY_GOLD:
                combined = combine(scores, "feedback", relevant=np.isin(passages, fields["gold"]))
            else:
                combined = combine(scores, row.name)
            kept = sorted(
                (
                    (float(score), -int(number))
                    for score, number in zip(combined, passages, strict=True)
                    if not np.isnan(score)
                ),
                reverse=True,
            )
            run[query_id] = {f"p{-number}": score for score, number in kept[: CONFIG.depth]}
        for measure in MEASURES:
            assert row.measures[measure]["mean"] == pytest.approx(mean_of(run, qrels, measure)), (row.name, measure)


def test_the_best_teacher_is_what_others_are_tested_against(mined, qrels):
    found = ablation(*mined, qrels, CONFIG)
    by_name = {row.name: row for row in found.rows}
    for measure in MEASURES:
        means = {name: by_name[name].measures[measure]["mean"] for name in "ab"}
        assert found.baseline[measure] == max("ab", key=lambda name: means[name])
        for row in found.rows:
            if row.name == found.baseline[measure]:
                assert measure not in row.against
                continue
            told = row.against[measure]
            assert told["difference"]["mean"] == pytest.approx(
                row.measures[measure]["mean"] - means[found.baseline[measure]]
            )
            assert 0 < told["p_value"] <= told["p_holm"] <= 1
    assert by_name[BY_GOLD].measures["nDCG@10"]["mean"] >= max(by_name[name].measures["nDCG@10"]["mean"] for name in "ab")


def test_three_teachers_are_also_left_out_one_by_one(mined, qrels, tmp_path):
    candidates, index = mined
    third = Artifact(str(tmp_path), "candidates", "three", fingerprint("candidates", 1, {"three": True}, {}))
    writer = ArtifactWriter(third)
    for part in candidates.manifest().parts:
        table = pq.read_table(candidates.fetch(part))
        scores = [[*own, [float(n) for n in range(len(own[0]))]] for own in table.column("scores").to_pylist()]
        place = table.schema.get_field_index("scores")
        table = table.set_column(place, table.schema.field(place), pa.array(scores, table.schema.field(place).type))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        writer.put_part(part.name, sink.getvalue().to_pybytes(), ".parquet", rows=len(table))
    writer.commit([part.name for part in candidates.manifest().parts], {"teachers": ["a", "b", "c"]})
    two, three = (ablation(each, index, qrels, CONFIG) for each in (candidates, third))
    left_out = {row.name: row for row in three.rows if row.kind == "left out"}
    assert list(left_out) == ["mean without a", "mean without b", "mean without c"]
    mean_of_two = next(row for row in two.rows if row.name == "mean")
    assert left_out["mean without c"].measures == mean_of_two.measures


def test_a_judged_turn_without_candidates_counts_nothing(mined, qrels):
    more = {**qrels, "elsewhere": {"p1": 1}, "unjudged": {}}
    some, all_ = ablation(*mined, qrels, CONFIG), ablation(*mined, more, CONFIG)
    assert all_.queries == len(qrels) + 1
    for one, other in zip(some.rows, all_.rows, strict=True):
        assert other.measures["RR"]["mean"] == pytest.approx(one.measures["RR"]["mean"] * len(qrels) / (len(qrels) + 1))


def test_qrels_of_other_turns_are_refused(mined):
    with pytest.raises(DataError, match=r"none of the turns .* is judged"):
        ablation(*mined, {"elsewhere": {"p1": 1}}, CONFIG)


def test_what_is_shown(mined, qrels):
    found = ablation(*mined, qrels, CONFIG)
    document = json.loads(comparison_json(found, {"run": "r"}))
    assert document["run"] == "r"
    assert [row["name"] for row in document["rows"]] == [row.name for row in found.rows]
    assert console_table(found, "all").row_count == len(found.rows)
    text = comparison_page(found, "Teachers & <co>", "By what they find.").decode()
    assert "Teachers &amp; &lt;co&gt;" in text
    assert text.count("<svg") == len(MEASURES)
    assert "://" not in text


def test_numbers_and_names_of_passages(mined):
    index = mined[1]
    numbers = np.array([59, 0, 24, 25, 0])
    assert passage_names(index, numbers) == ["p59", "p0", "p24", "p25", "p0"]
    with pytest.raises(ValueError, match="1 passage numbers are in no segment"):
        passage_names(index, np.array([60]))


@pytest.fixture
def rewrites(mined, tmp_path) -> dict[str, Artifact]:
    """Two teachers' rewrites: b failed once, and once wrote what a wrote but for the case."""
    made = {}
    for name in "ab":
        texts = [
            Rewrite(query_id, f"{name.upper()} {query_id}?", "chatty" if name == "b" and n == 3 else None, "")
            for n, query_id in enumerate(rows(mined[0]))
        ]
        if name == "b":
            texts[5] = Rewrite(texts[5].query_id, f"a  {texts[5].query_id}?", None, "")
        artifact = Artifact(str(tmp_path), "rewrites", name, fingerprint("rewrites", 1, {"name": name}, {}))
        sink = pa.BufferOutputStream()
        pq.write_table(rewrite_table(texts), sink)
        assert pq.read_schema(pa.BufferReader(sink.getvalue())).equals(REWRITE_SCHEMA)
        writer = ArtifactWriter(artifact)
        writer.put_part("all", sink.getvalue().to_pybytes(), ".parquet", rows=len(texts))
        writer.commit(["all"], {})
        made[name] = artifact
    return made


def test_the_better_rewrite_is_chosen(mined, rewrites):
    turns = {turn.query_id: turn for turn in judged_turns(mined[0], rewrites)}
    known, template, pairs = rows(mined[0]), find_template("zero-shot-v1"), {}
    for query_id, turn in turns.items():
        fields, passages, scores = known[query_id]
        gold = np.isin(passages, fields["gold"])
        assert turn.reward == ("ndcg" if fields["gold"] else "margin")
        expected = rewards(scores, gold)
        assert [turn.rewards.get(name, float("nan")) for name in "ab"] == pytest.approx(expected.tolist(), nan_ok=True)
        found = preference_pairs(turn, template, least=0.0)
        first, second = expected.tolist()
        same = len({" ".join(text.split()).casefold() for text in turn.rewrites.values()}) < 2
        assert len(found) == int(not same and first != second and not np.isnan(expected).any())
        for pair in found:
            assert (pair.chosen_teacher, pair.rejected_teacher) == (("a", "b") if first > second else ("b", "a"))
            assert pair.chosen == turn.rewrites[pair.chosen_teacher]
            assert pair.chosen_reward > pair.rejected_reward
            assert turn.question in pair.prompt
            assert all(question in pair.prompt for question, _ in turn.history)
            pairs[query_id] = pair
    ids = list(known)
    assert ids[3] not in pairs
    assert ids[5] not in pairs
    assert len(pairs) > 10
    apart = max(pair.chosen_reward - pair.rejected_reward for pair in pairs.values())
    assert not [one for turn in turns.values() for one in preference_pairs(turn, template, least=apart)]


def test_which_pairs(mined, rewrites):
    from raydistill.evaluation.preferences import JudgedTurn

    turn = JudgedTurn(
        "q",
        "and then?",
        (("who?", "me"),),
        {"w": "same", "x": "best", "y": "Same", "z": "worst"},
        {"w": 0.5, "x": 0.9, "y": 0.4, "z": 0.0, "silent": 1.0},
        "ndcg",
    )
    template = find_template("plain-v1")

    def texts(which: Any, least: float = 0.05) -> list[tuple[str, str]]:
        return [(pair.chosen, pair.rejected) for pair in preference_pairs(turn, template, least, which)]

    assert texts("extremes") == [("best", "worst")]
    assert texts("best") == [("best", "same"), ("best", "worst")]
    assert texts("all") == [("best", "same"), ("best", "worst"), ("same", "worst")]
    assert texts("all", least=0.45) == [("best", "Same"), ("best", "worst"), ("same", "worst")]


def test_pairs_are_written_in_both_forms(mined, rewrites, tmp_path):
    template = find_template("plain-v1")
    pairs = [pair for turn in judged_turns(mined[0], rewrites) for pair in preference_pairs(turn, template, 0.0)]
    for suffix in ("jsonl", "parquet"):
        write_preferences(tmp_path / f"pairs.{suffix}", pairs)
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert table.schema.equals(SCHEMA)
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == table.to_pylist()
    for path, sentence in ((tmp_path / "pairs.csv", "must end in"), (tmp_path / "no" / "pairs.jsonl", "does not exist")):
        with pytest.raises(ConfigError, match=sentence):
            check_path(Path(path))
