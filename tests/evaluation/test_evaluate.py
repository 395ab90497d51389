"""The evaluate stage on Ray, over a real index, real rewrites and a real (random) student."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydistill.config import DistillConfig, ExactEngine, RerankConfig, SeismicEngine
from raydistill.conversations.records import Conversation, ConversationalQuery, ConversationSet, Turn
from raydistill.conversations.text import full_conversation_text, history_pairs
from raydistill.errors import DataError
from raydistill.evaluation.evaluate import evaluate, evaluation_artifact, load_metrics
from raydistill.evaluation.measures import score_run
from raydistill.evaluation.report import build_report
from raydistill.evaluation.runs import read_run
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.reranking.cross_encoder import CrossEncoder
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import put_folder
from tests.animal_world import ANIMALS, TRAITS, tiny_cross_encoder, tiny_student, write_corpus


@dataclass(frozen=True)
class World:
    """Everything that the stage is given."""

    config: DistillConfig
    queries: list[ConversationalQuery]
    qrels: Mapping[str, Mapping[str, int]]
    rewrites: Mapping[str, Artifact]
    index: IndexVersion
    student: Artifact

    def evaluate(self, **replaced: object) -> Artifact:
        given = {**self.__dict__, **replaced}
        return evaluate(**given, root=self.config.root)


def conversations() -> tuple[Conversation, ...]:
    found = []
    for animal in ANIMALS:
        questions = [f"tell me where the {animal} lives", "what food does it eat", "and when does it sleep"]
        answers = [f"the {animal} {trait}" for trait in TRAITS.values()]
        turns = [
            Turn(f"{animal}<::>{place}", place, question, answer)
            for place, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1)
        ]
        found.append(Conversation(animal, tuple(turns)))
    return tuple(found)


@pytest.fixture(scope="module")
def world(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    from raydistill.encoders.checkpoint import save_student
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.encoders.splade import SpladeModel
    from raydistill.index.build import build_index
    from raydistill.index.corpus import prepare_corpus
    from raydistill.teachers.pool import teach

    folder = tmp_path_factory.mktemp("world")
    write_corpus(folder / "corpus.jsonl.gz")
    judged = ConversationSet(conversations(), {}, "")
    queries = list(judged.queries())
    # The last animal's turns have no judgement.
    qrels = {
        query.query_id: {f"{query.conversation_id}/{list(TRAITS)[query.depth - 1]}": 1}
        for query in queries
        if query.conversation_id != ANIMALS[-1]
    }
    full = [
        {"_id": query.query_id, "text": f"the {query.conversation_id} {list(TRAITS.values())[query.depth - 1]}"}
        for query in queries
    ]
    (folder / "full.jsonl").write_text("".join(json.dumps(each) + "\n" for each in full))
    (folder / "half.jsonl").write_text("".join(json.dumps(each) + "\n" for each in full[::2]))
    (folder / "encoder").mkdir()
    tiny_student(folder / "encoder")
    config = DistillConfig.model_validate(
        {
            "run": "trial",
            "root": str(folder / "root"),
            "data": {
                "corpus": [str(folder / "corpus.jsonl.gz")],
                "train": {"conversations": "/unused"},
                "test": {"conversations": "/unused"},
            },
            "teachers": [
                {"engine": "recorded", "name": name, "rewrites": str(folder / f"{name}.jsonl")} for name in ("full", "half")
            ],
            "student": {"model": str(folder / "encoder"), "text": {"max_tokens": 64}},
            "index": {"passages_per_segment": 7},
            "evaluate": {"measures": ["nDCG@3", "R@10", "RR"], "depth": 10, "bootstrap_samples": 50, "queries_per_part": 8},
        }
    )
    (folder / "root").mkdir()
    corpus = prepare_corpus(config.data, config.index.passages_per_segment, config.index.workers, config.root)
    index = build_index(config.index, config.student, corpus, config.root)
    rewrites = {
        teacher.name: teach(teacher, queries, fingerprint("q", 1, {}, {}), config.root) for teacher in config.teachers
    }
    tokenizer = load_tokenizer(config.student.model, None, False, "student.model")
    save_student(SpladeModel.from_config(config.student), tokenizer, folder / "student", config.student.text, "A student.")
    student = Artifact(config.root, "student", "trial", fingerprint("student", 1, {}, {}))
    ArtifactWriter(student).commit(put_folder(ArtifactWriter(student), folder / "student"), {})
    return World(config, queries, qrels, rewrites, index, student)


@pytest.fixture(scope="module")
def evaluation(world: World) -> Artifact:
    return world.evaluate()


def test_systems_are_ranked_as_they_must_be(evaluation: Artifact, world: World) -> None:
    metrics = load_metrics(evaluation)
    assert (metrics["queries"], metrics["left_out"]) == (15, 3)
    systems = {system["name"]: system for system in metrics["systems"]}
    assert list(systems) == ["last turn", "all user turns", "full conversation", "full", "half", "student"]
    score = {name: system["measures"]["nDCG@3"]["mean"] for name, system in systems.items()}
    assert score["full"] == 1.0  # the rewrite is the passage
    assert score["last turn"] < score["half"] < score["full"]
    first_turns = {name: system["by_depth"][0]["measures"]["RR"]["mean"] for name, system in systems.items()}
    assert first_turns["last turn"] == first_turns["full conversation"] == first_turns["all user turns"]
    assert all(system["encode_ms"]["p99"] >= system["encode_ms"]["p50"] > 0 for system in systems.values())
    assert all(system["search_ms"]["p50"] > 0 for system in systems.values())
    assert {each["system"] for each in metrics["comparisons"]} == set(systems) - {"student"}


def test_failed_rewrites_are_counted_and_stand_in(evaluation: Artifact, world: World) -> None:
    teachers = load_metrics(evaluation)["teachers"]
    assert teachers["rewrites"]["full"] == {"rows": 18, "failures": {}}
    assert teachers["rewrites"]["half"] == {"rows": 18, "failures": {"missing": 9}}
    assert 0 < teachers["agreement"]["overlap"][0][1] <= 1
    table = pq.read_table(evaluation.fetch(evaluation.part("per-query"))).to_pylist()
    absent = next(row for row in table if row["system"] == "half" and row["query_id"] == "otter<::>2")
    assert absent["text"] == "what food does it eat"


def test_stored_runs_and_qrels_reproduce_the_metrics(evaluation: Artifact, world: World) -> None:
    from raydistill.conversations.qrels import read_qrels

    metrics = load_metrics(evaluation)
    qrels = read_qrels(str(evaluation.fetch(evaluation.part("qrels"))))
    assert qrels == world.qrels
    for number, system in enumerate(metrics["systems"]):
        name = f"run-{number:02d}-{system['name'].replace(' ', '-')}"
        run = read_run(str(evaluation.fetch(evaluation.part(name))))
        means = score_run(run, qrels, metrics["measures"]).means()
        assert means == pytest.approx({name: interval["mean"] for name, interval in system["measures"].items()})
        assert all(len(ranking) <= 10 for ranking in run.rankings.values())


def test_flops_and_terms_are_those_of_the_vectors(evaluation: Artifact, world: World) -> None:
    from raydistill.encoders.documents import load_document_encoder

    encoder = load_document_encoder(world.config.index.documents, world.config.student, world.index.open_statistics())
    texts = [query.question for query in world.queries if query.query_id in world.qrels]
    queries = encoder.encode_queries(texts).to_dense() > 0
    searcher = open_searcher(world.index)
    passages = searcher.vectors(np.arange(searcher.passages)).to_dense() > 0
    shared = (queries[:, None, :] & passages[None, :, :]).sum(axis=2)
    system = load_metrics(evaluation)["systems"][0]
    assert system["flops"]["mean"] == pytest.approx(shared.mean())
    assert system["terms"]["mean"] == pytest.approx(queries.sum(axis=1).mean())
    # An exhaustive search reads every posting of the query's terms.
    assert 0 < system["postings"]["mean"] <= shared.sum(axis=1).mean()


def test_the_student_reads_the_conversation_newest_first(evaluation: Artifact, world: World) -> None:
    from raydistill.encoders.checkpoint import load_student
    from raydistill.storage.folders import fetch_folder

    folder = Path(world.config.root) / "student-again"
    student = load_student(fetch_folder(world.student, folder))
    text = "what food does it eat [SEP] the otter lives in the forest near water [SEP] tell me where the otter lives"
    expected = student.encoder().encode_queries([text])
    found = open_searcher(world.index).search(expected, 10)
    run = read_run(str(evaluation.fetch(evaluation.part("run-05-student"))))
    np.testing.assert_allclose([score for _, score in run.rankings["otter<::>2"]], found.scores[0], rtol=1e-4)
    [reading] = [each for each in load_metrics(evaluation)["slices"] if each["name"] == "reading"]
    assert [group["label"] for group in reading["groups"]] == ["read whole"], "all of it fits into the student's input"


def test_a_second_call_computes_nothing(evaluation: Artifact, world: World) -> None:
    before = evaluation.manifest().operation_id
    assert world.evaluate() == evaluation == evaluation_artifact(**world.__dict__, root=world.config.root)
    assert evaluation.manifest().operation_id == before


def test_what_changes_the_result_changes_the_address(evaluation: Artifact, world: World) -> None:
    def address(**replaced: object) -> Artifact:
        given = {**world.__dict__, **replaced}
        return evaluation_artifact(**given, root=world.config.root)

    other_depth = world.config.model_copy(update={"evaluate": world.config.evaluate.model_copy(update={"depth": 5})})
    other_parts = world.config.model_copy(
        update={"evaluate": world.config.evaluate.model_copy(update={"queries_per_part": 2})}
    )
    fewer = dict(list(world.qrels.items())[1:])
    assert address(config=other_depth) != evaluation
    assert address(qrels=fewer) != evaluation
    assert address(rewrites={"full": world.rewrites["full"]}) != evaluation
    assert address(config=other_parts) == evaluation


def test_the_approximate_engine_is_searched_where_it_is_asked_for(evaluation: Artifact, world: World) -> None:
    pytest.importorskip("seismic", reason="pyseismic-lsr is not installed; pip install 'raydistill[seismic]'")
    generous = SeismicEngine(query_cut=100, heap_factor=0.1)
    config = world.config.model_copy(update={"evaluate": world.config.evaluate.model_copy(update={"engine": generous})})
    approximate = world.evaluate(config=config)
    assert approximate.fingerprint != evaluation.fingerprint
    assert [info.key for info in evaluation.store.list("artifacts/seismic/") if info.key.endswith("_manifest.json")]
    exact, found = (
        {system["name"]: system["measures"]["R@10"]["mean"] for system in load_metrics(each)["systems"]}
        for each in (evaluation, approximate)
    )
    assert found == pytest.approx(exact)
    default = world.config.evaluate.model_copy(update={"engine": ExactEngine()})
    same = world.config.model_copy(update={"evaluate": default})
    assert evaluation_artifact(**{**world.__dict__, "config": same}, root=world.config.root) == evaluation


def test_an_interrupted_evaluation_keeps_its_finished_parts(evaluation: Artifact, world: World) -> None:
    metrics = load_metrics(evaluation)
    parts = {part.name: part for part in evaluation.manifest().parts}
    kept, lost = "00000000-00000008", "00000008-00000015"
    folder = Path(world.config.root) / evaluation.prefix
    (folder / "_manifest.json").unlink()
    for receipt in (folder / "_receipts").iterdir():
        if receipt.stem != kept:
            receipt.unlink()
    again = world.evaluate()
    remade = {part.name: part for part in again.manifest().parts}
    assert remade[kept] == parts[kept]
    assert lost in remade
    for before, after in zip(metrics["systems"], load_metrics(again)["systems"], strict=True):
        assert after["measures"] == before["measures"]
        assert after["flops"] == before["flops"]


def test_the_report_of_a_real_evaluation(evaluation: Artifact, world: World) -> None:
    html = build_report(world.config, load_metrics(evaluation)).html
    assert html.count("<svg") >= 4
    assert "full conversation" in html


def test_without_judgements_or_with_a_taken_name_it_stops(world: World) -> None:
    with pytest.raises(DataError, match="none of the 18 test turns has a judgement"):
        world.evaluate(qrels={"unknown": {"p": 1}})
    with pytest.raises(DataError, match="'student' is the name of a system"):
        world.evaluate(rewrites={"student": world.rewrites["full"]})


def test_a_second_stage_is_a_row_of_its_own_beside_the_first(evaluation: Artifact, world: World, tmp_path: Path) -> None:
    tiny_cross_encoder(tmp_path)
    rerank = RerankConfig.model_validate({"model": str(tmp_path), "depth": 6, "query_tokens": 24, "max_tokens": 64})
    config = world.config.model_copy(update={"evaluate": world.config.evaluate.model_copy(update={"rerank": rerank})})
    second = world.evaluate(config=config)
    assert second != evaluation
    metrics = load_metrics(second)
    before, after = load_metrics(evaluation)["systems"], metrics["systems"]
    assert [system["name"] for system in after] == [*(system["name"] for system in before), "student, reranked"]
    for one, other in zip(before, after, strict=False):
        assert one["measures"] == other["measures"]
    first, last = after[-2], after[-1]
    assert (last["role"], last["flops"], last["terms"]) == ("reranked", first["flops"], first["terms"])
    assert last["postings"] == first["postings"]
    assert last["total_ms"]["p50"] > first["total_ms"]["p50"]
    assert "student, reranked" in {each["system"] for each in metrics["comparisons"]}
    assert "student, reranked" in build_report(config, metrics).html

    student = read_run(str(second.fetch(second.part("run-05-student"))))
    reranked = read_run(str(second.fetch(second.part("run-06-student-reranked"))))
    encoder = CrossEncoder(rerank)
    for query in world.queries:
        if query.query_id in world.qrels:
            ids = [passage for passage, _ in student.rankings[query.query_id]]
            text = full_conversation_text(query.question, history_pairs(query))
            texts = ["{0}\nthe {0} {1}".format(*_words_of(each)) for each in ids[:6]]
            scores = dict(zip(ids, encoder.scores(text, texts), strict=False))
            found = reranked.rankings[query.query_id]
            assert {passage for passage, _ in found[:6]} == set(ids[:6])
            assert [passage for passage, _ in found[6:]] == ids[6:]
            np.testing.assert_allclose([score for _, score in found[:6]], sorted(scores.values(), reverse=True), atol=1e-4)


def _words_of(passage_id: str) -> tuple[str, str]:
    animal, name = passage_id.split("/")
    return animal, TRAITS[name]


def test_parts_hold_every_system_and_query_once(evaluation: Artifact, world: World) -> None:
    rows = [
        (row["system"], row["query_id"])
        for part in evaluation.manifest().parts
        if part.name.startswith("0")
        for row in pq.read_table(io.BytesIO(evaluation.fetch(part).read_bytes())).to_pylist()
    ]
    assert len(rows) == len(set(rows)) == 6 * 15
