"""Scoring on Ray: scores of the right passages by the right texts beside the teachers', resumable, nothing made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from raydistill.config import BiEncoderScorerConfig, CrossEncoderScorerConfig, DistillConfig, LlmScorerConfig, StudentConfig
from raydistill.errors import ConfigError, DataError, TeacherError
from raydistill.index.build import build_index
from raydistill.index.candidates import candidate_scores
from raydistill.index.corpus import prepare_corpus
from raydistill.reranking.cross_encoder import CrossEncoder
from raydistill.reranking.order import query_text
from raydistill.scoring.judges import Candidates, Tally
from raydistill.scoring.opening import check_scorer, open_judge
from raydistill.scoring.stage import judgements_artifact, score_candidates, scored_artifact, scoring_counts
from raydistill.storage.artifacts import Artifact
from raydistill.storage.store import open_store
from raydistill.teachers.combine import Combiner
from tests.animal_world import tiny_cross_encoder
from tests.index.stage_world import WORKERS, World, data_config, lexical_config, passages, write_jsonl

pytestmark = pytest.mark.usefixtures("ray_cluster")
GOLD = {"c0::1": {"p3": 1}, "c1::2": {"p200": 1, "p7": 0}, "c3::3": {"p11": 2}}
DEPTH = 6


@pytest.fixture(scope="module")
def original(tmp_path_factory, ray_cluster, minilm) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    data = data_config([write_jsonl(folder / "corpus.jsonl", passages(230))], max_bad_rows=1)
    corpus = prepare_corpus(data, 100, WORKERS, str(folder / "root"))
    build_index(lexical_config(), StudentConfig(model=minilm), corpus, str(folder / "root"))
    tiny_cross_encoder(folder / "reader", tokenizer=AutoTokenizer.from_pretrained(minilm))
    World(folder, minilm, GOLD).mine()  # every test's copy finds it made
    return folder


@pytest.fixture
def folder(tmp_path, original) -> Path:
    return Path(shutil.copytree(original, tmp_path / "world"))


@pytest.fixture
def world(folder, minilm) -> World:
    return World(folder, minilm, GOLD)


def reader(folder: Path, **fields: Any) -> CrossEncoderScorerConfig:
    encoder = {"model": str(folder / "reader"), "query_tokens": 12, "max_tokens": 32}
    return CrossEncoderScorerConfig(**{"name": "reader", "encoder": encoder, "depth": DEPTH, "turns_per_task": 2, **fields})


def asking(model: str, **fields: Any) -> LlmScorerConfig:
    llm = {"engine": "transformers", "model": model, "dtype": "float32"}
    settings = {"name": "judge", "llm": llm, "options": ("y", "n"), "depth": DEPTH, "query": "one", **fields}
    return LlmScorerConfig.model_validate(settings)


def rows(artifact: Artifact) -> dict[str, dict[str, Any]]:
    found = {}
    for part in artifact.manifest().parts:
        table = pq.read_table(artifact.fetch(part))
        for number, row in enumerate(table.to_pylist()):
            numbers, scores = candidate_scores(table, number)
            found[row["query_id"]] = {**row, "numbers": numbers, "matrix": scores}
    return found


def test_scores_stand_beside_those_of_the_teachers(world, folder, judge_model):
    mined, index = world.mine(), world.index()
    scorers = (reader(folder), asking(judge_model))
    scored = score_candidates(scorers, mined, world.rewrites, index, WORKERS)
    assert scored == scored_artifact(scorers, mined, world.rewrites)
    assert scored.manifest().metadata["teachers"] == ["one", "two", "reader", "judge"]
    before, after = rows(mined), rows(scored)
    assert list(after) == list(before)
    encoder, texts = CrossEncoder(scorers[0].encoder), [f"{each['title']}\n{each['text']}" for each in passages(230)]
    judge = open_judge(scorers[1], str(folder / "elsewhere"))
    histories = {query.query_id: query for query in world.queries}
    for query_id, row in after.items():
        old = before[query_id]
        for name in ("conversation_id", "source", "depth", "question", "history", "gold", "passages"):
            assert row[name] == old[name]
        np.testing.assert_array_equal(row["numbers"], old["numbers"])
        np.testing.assert_array_equal(row["matrix"][:2], old["matrix"])
        assert row["rewrite_terms"] == [*old["rewrite_terms"], None, None]
        # The best by the teachers' mean, and gold.
        mean = Combiner()(old["matrix"])
        best = set(np.argsort(-mean, kind="stable")[:DEPTH].tolist()) | set(
            np.flatnonzero(np.isin(old["numbers"], old["gold"]))
        )
        for scores in row["matrix"][2:]:
            assert set(np.flatnonzero(~np.isnan(scores))) == best
        places = sorted(best)
        query = histories[query_id]
        conversation = query_text(query.question, [(t.question, t.answer) for t in query.history], "full conversation")
        own = [texts[number] for number in row["numbers"][places]]
        np.testing.assert_allclose(row["matrix"][2][places], encoder.scores(conversation, own), atol=1e-4)
        rewrite = world.texts["one"].get(query_id, query.question)
        (expected,) = judge.judge([Candidates(rewrite, own)], Tally())
        np.testing.assert_allclose(row["matrix"][3][places], expected, atol=1e-4)
    counters = scored.manifest().metadata["counters"]
    assert counters["turns.reader"] == len(after)
    assert (
        counters["scored.judge"]
        == counters["passages.judge"]
        == sum((~np.isnan(row["matrix"][3])).sum() for row in after.values())
    )
    told = {row["scorer"]: row for row in scoring_counts(scorers, scored)}
    assert [row["kind"] for row in told.values()] == ["cross-encoder", "llm"]
    assert told["reader"]["turns"] == told["judge"]["turns"] == len(after)
    assert told["judge"]["passages"] == counters["passages.judge"]
    assert told["judge"]["prompt_tokens"] > told["judge"]["prompts"] > told["reader"]["prompt_tokens"] == 0
    assert {k: v for k, v in counters.items() if "." not in k} == {
        k: v for k, v in mined.manifest().metadata["counters"].items() if "." not in k
    }


def test_a_scorer_that_reads_a_teacher_needs_its_rewrites_of_these_turns(world, judge_model):
    others = {name: artifact for name, artifact in world.rewrites.items() if name != "one"}
    with pytest.raises(DataError, match=r"scorers.judge.query is the teacher 'one', which has no rewrites of these turns"):
        score_candidates((asking(judge_model),), world.mine(), others, world.index(), WORKERS)


def test_a_dense_encoder_scores_what_the_teacher_wrote(world, folder, minilm):
    mined, index = world.mine(), world.index()
    encoder = {"model": minilm, "max_tokens": 32}
    scorer = BiEncoderScorerConfig(name="dense", encoder=encoder, depth=DEPTH, query="one", turns_per_task=2)
    scored = rows(score_candidates((scorer,), mined, world.rewrites, index, WORKERS))
    judge, texts = open_judge(scorer, str(folder)), [f"{each['title']}\n{each['text']}" for each in passages(230)]
    for query_id, row in scored.items():
        read = np.flatnonzero(~np.isnan(row["matrix"][2]))
        assert DEPTH <= len(read) <= DEPTH + len(row["gold"])
        own = [texts[number] for number in row["numbers"][read]]
        asked = world.texts["one"].get(query_id, row["question"])
        (expected,) = judge.judge([Candidates(asked, own)], Tally())
        np.testing.assert_allclose(row["matrix"][2][read], expected, atol=1e-4)


def test_without_scorers_the_candidates_stay(world):
    mined = world.mine()
    assert score_candidates((), mined, world.rewrites, world.index(), WORKERS) == mined


def test_a_lost_part_is_scored_again_out_of_what_was_paid_for(world, judge_model):
    mined, index = world.mine(), world.index()
    scorer = asking(judge_model, turns_per_task=3)
    scored = score_candidates((scorer,), mined, world.rewrites, index, WORKERS)
    content = rows(scored)
    made = judgements_artifact(scorer, mined, world.rewrites)
    store = open_store(world.config.root)
    names = [info.key for info in store.list(f"artifacts/{made.kind}/")]
    receipts = [name for name in names if "receipt" in name or name.endswith("_manifest.json")]
    for key in [
        *receipts,
        *(info.key for info in store.list(f"artifacts/{scored.kind}/") if scored.fingerprint[:16] in info.key),
    ]:
        store.delete(key)
    again = score_candidates((scorer,), mined, world.rewrites, index, WORKERS)
    assert again == scored
    for query_id, row in rows(again).items():
        np.testing.assert_array_equal(row["matrix"], content[query_id]["matrix"])
    counters = made.manifest().metadata["counters"]
    assert counters["cached"] == counters["prompts"] > 0


@pytest.mark.slow
def test_another_scorer_leaves_the_first_ones_work(world, folder, judge_model):
    mined, index = world.mine(), world.index()
    score_candidates((asking(judge_model),), mined, world.rewrites, index, WORKERS)
    made = judgements_artifact(asking(judge_model), mined, world.rewrites)
    stamp = Path(made.fetch(made.manifest().parts[0])).stat().st_mtime_ns
    both = score_candidates((reader(folder), asking(judge_model)), mined, world.rewrites, index, WORKERS)
    assert both.manifest().metadata["teachers"] == ["one", "two", "reader", "judge"]
    assert Path(made.fetch(made.manifest().parts[0])).stat().st_mtime_ns == stamp
    # What it reads as the query decides its numbers; how many turns it gets at a time does not.
    assert judgements_artifact(asking(judge_model, query="two"), mined, world.rewrites) != made
    assert judgements_artifact(asking(judge_model, turns_per_task=9), mined, world.rewrites) == made


def test_calibrated_scores_are_log_odds_of_being_gold(world, folder):
    mined, index = world.mine(), world.index()
    plain = rows(score_candidates((reader(folder),), mined, world.rewrites, index, WORKERS))
    scorer = reader(folder, calibrate=True)
    scored = score_candidates((scorer,), mined, world.rewrites, index, WORKERS)
    found = judgements_artifact(scorer, mined, world.rewrites).manifest().metadata["calibration"]
    assert found["turns"] == 3
    assert found["log_loss_after"] <= found["log_loss_before"]
    for query_id, row in rows(scored).items():
        expected = found["slope"] * plain[query_id]["matrix"][2] + found["intercept"]
        np.testing.assert_allclose(row["matrix"][2], expected, rtol=1e-5)


def test_a_calibration_without_gold_is_refused(folder, minilm):
    world = World(folder, minilm, {})
    with pytest.raises(DataError, match=r"scorers.reader.calibrate: a calibration needs relevant and other passages, got 0"):
        score_candidates((reader(folder, calibrate=True),), world.mine(), world.rewrites, world.index(), WORKERS)


def test_a_model_that_answers_nothing_is_told_and_nothing_is_stored(world, judge_model):
    short = {"engine": "transformers", "model": judge_model, "dtype": "float32", "max_prompt_tokens": 1}
    config = json.loads((Path(judge_model) / "config.json").read_text())
    crippled = world.folder / "crippled"
    shutil.copytree(judge_model, crippled)
    (crippled / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    mined = world.mine()
    scorer = asking(str(crippled), llm={**short, "model": str(crippled)})
    with pytest.raises(TeacherError, match=r"scorer judge could answer none of .* prompts \(engine_error\)"):
        score_candidates((scorer,), mined, world.rewrites, world.index(), WORKERS)
    assert judgements_artifact(scorer, mined, world.rewrites).find_manifest() is None


def test_a_scorer_is_checked_before_anything_starts(folder, judge_model, tmp_path):
    check_scorer(reader(folder))
    check_scorer(asking(judge_model))
    check_scorer(asking(judge_model, method="pairwise", options=None))
    with pytest.raises(
        ConfigError, match=r"scorers.judge: the option 'yes' is 3 tokens .*; give scorers.judge.options two words"
    ):
        check_scorer(asking(judge_model, options=None))
    with pytest.raises(ConfigError, match="'listwise-v1' is a listwise prompt"):
        check_scorer(asking(judge_model, prompt="listwise-v1"))
    with pytest.raises(ConfigError, match=r"scorers.judge.llm.model: the folder '/nowhere' does not exist here"):
        judgements_artifact(asking("/nowhere"), Artifact(str(tmp_path), "candidates", "c", "0" * 64), {})
    with pytest.raises(ConfigError, match=r"scorers.reader.encoder.model"):
        check_scorer(reader(folder, encoder={"model": str(tmp_path / "nothing")}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "pairwise"}, "options is set, and only method pointwise has it, not pairwise"),
        ({"opponents": 4}, "opponents is set, and only method pairwise has it, not pointwise"),
        ({"method": "listwise", "options": None, "step": 20}, "step is 20 and window 20"),
        ({"options": ("y",)}, "give two that differ"),
        ({"llm": {"engine": "transformers", "model": "x/y", "samples": 3, "temperature": 1}}, "llm.temperature is set"),
    ],
)
def test_settings_that_change_nothing_are_refused(judge_model, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        asking(judge_model, **fields)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"query": "three"}, "scorers: reader is to read 'three' as the query; it can read last turn, all user turns, full"),
        ({"name": "one"}, "the name 'one' is used twice"),
    ],
)
def test_a_scorer_must_fit_the_teachers(world, folder, change, sentence):
    fields = {**world.config.model_dump(mode="python"), "scorers": (reader(folder, **change),)}
    with pytest.raises(ValueError, match=sentence):
        DistillConfig.model_validate(fields)
