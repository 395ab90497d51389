"""What a model card says."""

from __future__ import annotations

import yaml

from raydistill.config_loading import build_config
from raydistill.distill.model_card import model_card

TREE = {
    "run": "small",
    "root": "file:///secret/place/runs",
    "data": {
        "corpus": ["/secret/place/corpus.jsonl.gz"],
        "train": [
            {"name": "clapnq", "conversations": "/secret/place/clapnq.jsonl"},
            {"name": "made", "reader": "passages", "sample": 500},
        ],
        "test": {"conversations": "s3://secret/test.jsonl", "split": "dev"},
    },
    "teachers": [
        {"engine": "recorded", "name": "human", "rewrites": "/secret/place/human.jsonl"},
        {"engine": "transformers", "name": "llm", "model": "org/rewriter"},
    ],
    "student": {"model": "/secret/place/encoder", "text": {"answer_words": 60}},
    "train": {
        "objective": "0.9*kld(tau=2) + 0.1*infonce",
        "regularisation": {"terms": "0.002*flops", "target": "l0<=25", "per_depth": True},
    },
}


def test_a_card_states_data_teachers_objective_regularisation_and_text_form() -> None:
    card = model_card(build_config(TREE))
    for line in (
        "| starting point | `encoder`, mlm head |",
        "| training conversations | clapnq (clapnq.jsonl); made (conversations made of 500 passages) |",
        "| passages | corpus.jsonl.gz; vectors: BM25 impacts (k1 0.9, b 0.4) |",
        "| teachers (rewrites) | human (recorded); llm (`org/rewriter`, prompt zero-shot-v1); scores combined by mean |",
        "| objective | `0.9*kld(tau=2) + 0.1*infonce` |",
        "| regularisation | `0.002*flops`, driven to the target `l0<=25` at every turn depth |",
        "| text | newest first, 256 tokens; of the history, 64 words of each question and 60 of each answer |",
    ):
        assert line in card
    assert "secret" not in card
    assert "None were taken" in card


def test_a_card_says_of_how_many_seeds_a_student_is_the_mean() -> None:
    assert ", seed 42 |" in model_card(build_config(TREE))
    train = {**TREE["train"], "averaged_seeds": 3}
    assert "mean of the parameters of 3 students, seeds 42 and following |" in model_card(
        build_config({**TREE, "train": train})
    )


def test_a_card_says_how_many_terms_are_kept() -> None:
    student = {**TREE["student"], "top_terms": 40}
    assert "mlm head; the 40 heaviest terms of a query are kept |" in model_card(build_config({**TREE, "student": student}))


def test_a_card_shows_measures_where_there_are_some() -> None:
    test = {"nDCG@10": {"mean": 0.32149, "low": 0.25, "high": 0.4001}, "FLOPS": {"mean": 1.84}}
    card = model_card(build_config(TREE), test)
    assert "On the test conversations (test.jsonl, split dev), with 95 % bootstrap intervals." in card
    assert "| nDCG@10 | 0.3215 [0.25, 0.4001] |\n| FLOPS | 1.84 |" in card
    assert "held-out" not in card
    assert "None were taken" not in card


def test_a_card_shows_the_validation_of_the_student_that_it_lies_beside() -> None:
    card = model_card(
        build_config(TREE), validation={"step": 40, "R@100": 0.75, "l0": 31.5, "l0_depth_2": 30.0, "flops": 1.2}
    )
    assert "On held-out training conversations, at step 40." in card
    assert "| R@100 | 0.75 |\n| L0 | 31.5 |\n| FLOPS | 1.2 |" in card
    assert "depth" not in card.partition("## Measures")[2]
    assert "On the test" not in card


def test_the_header_is_yaml_between_dashes() -> None:
    _, header, _ = model_card(build_config(TREE)).split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "sentence-transformers"


def test_a_card_names_scorers_weights_and_what_further_rounds_do() -> None:
    tree = {
        **TREE,
        "scorers": [
            {"name": "judge", "kind": "cross-encoder", "depth": 60, "encoder": {"model": "org/reader"}, "query": "llm"}
        ],
        "rounds": 2,
        "score": {"student_encodes_rewrites": True},
        "student": {"model": "org/encoder"},
    }
    tree["train"] = {**TREE["train"], "teacher_weights": {"llm": 2}, "sampling": {"policy": "uniform", "student_top": 4}}
    tree["train"]["objective"] = "kld + 0.2*kld(teacher=judge)"
    tree["train"]["teacher_weights"]["judge"] = 0
    tree["score"]["top_k"] = 100
    card = model_card(build_config(tree))
    for line in (
        "| teachers (scores) | judge (`org/reader`, cross-encoder, the 60 best candidates) |",
        "| weights of teachers | llm 2, judge 0 |",
        "`uniform`, 4 of the last round's student |",
        "2 rounds of mining, the student of the round before encodes the rewrites too |",
    ):
        assert line in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "org/encoder"
    assert "base_model" not in yaml.safe_load(model_card(build_config(TREE)).split("---")[1])
