"""Several sources are one training set with ids that mean one turn, and whole conversations are held out of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config import DataConfig
from raydistill.conversations.records import ConversationSet
from raydistill.conversations.training import read_training
from raydistill.errors import DataError


def conversations(folder: Path, name: str, ids: list[str], judged: bool = True) -> dict[str, Any]:
    """Write conversations of two turns, the second one judged, and return their source."""
    records = [
        {
            "conversation_id": each,
            "turns": [{"query_id": f"{each}::{n}", "user": f"question {n} of {each}?", "agent": "yes"} for n in (1, 2)],
        }
        for each in ids
    ]
    path, qrels = folder / f"{name}.jsonl", folder / f"{name}.tsv"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    qrels.write_text("".join(f"{each}::2\tp-{each}\t1\n" for each in ids))
    return {"name": name, "conversations": str(path), **({"qrels": str(qrels)} if judged else {})}


def data(train: Any, **changes: Any) -> DataConfig:
    fields = {"corpus": ["/corpus"], "test": {"conversations": "/test"}, **changes}
    return DataConfig.model_validate({"train": train, **fields})


def ids(found: ConversationSet | None) -> set[str]:
    assert found is not None
    return {one.conversation_id for one in found.conversations}


def test_sources_follow_one_another_and_only_those_with_qrels_have_gold_passages(tmp_path: Path) -> None:
    sources = [conversations(tmp_path, "a", ["a1", "a2"]), conversations(tmp_path, "b", ["b1"], judged=False)]
    found, validation = read_training(data(sources))
    assert validation is None
    assert [(query.query_id, query.source) for query in found.queries()] == [
        ("a1::1", "a"),
        ("a1::2", "a"),
        ("a2::1", "a"),
        ("a2::2", "a"),
        ("b1::1", "b"),
        ("b1::2", "b"),
    ]
    assert found.qrels == {"a1::2": {"p-a1": 1}, "a2::2": {"p-a2": 1}}
    fewer, _ = read_training(data(sources[:1]))
    assert fewer.fingerprint != found.fingerprint


def test_an_id_of_two_sources_is_refused_until_one_prefixes_its_own(tmp_path: Path) -> None:
    sources = [conversations(tmp_path, "a", ["x"]), conversations(tmp_path, "b", ["x"])]
    with pytest.raises(DataError, match=r"id 'x::1' is in source 'a' and in source 'b'.* prefix_ids: true in source 'b'"):
        read_training(data(sources))
    found, _ = read_training(data([sources[0], {**sources[1], "prefix_ids": True}]))
    assert found.qrels == {"x::2": {"p-x": 1}, "b:x::2": {"p-x": 1}}


def test_a_share_of_the_judged_conversations_is_held_out_whole(tmp_path: Path) -> None:
    names = [f"a{n}" for n in range(10)]
    sources = [conversations(tmp_path, "a", names), conversations(tmp_path, "b", ["b1", "b2"], judged=False)]
    train, validation = read_training(data(sources, validation={"share": 0.3}))
    assert validation is not None
    assert len(ids(validation)) == 3
    assert ids(validation) < set(names)
    assert ids(train) == ({*names, "b1", "b2"} - ids(validation))
    assert set(train.qrels) == {f"{each}::2" for each in set(names) - ids(validation)}
    assert set(validation.qrels) == {f"{each}::2" for each in ids(validation)}
    whole, _ = read_training(data(sources))
    assert len({whole.fingerprint, train.fingerprint, validation.fingerprint}) == 3


def test_a_larger_share_holds_out_more_and_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    names = [f"a{n}" for n in range(10)]
    plain, turned = conversations(tmp_path, "a", names), conversations(tmp_path, "turned", names[::-1])

    def held_out(source: dict[str, Any], share: float) -> set[str]:
        return ids(read_training(data(source, validation={"share": share}))[1])

    assert held_out(plain, 0.2) == held_out(turned, 0.2)
    assert held_out(plain, 0.2) < held_out(plain, 0.5)
    assert len(held_out(plain, 0.01)) == 1


@given(st.integers(2, 13), st.data())
def test_folds_hold_out_every_judged_conversation_once(number: int, drawn: st.DataObject) -> None:
    folds = drawn.draw(st.integers(2, number))
    names = [f"a{n}" for n in range(number)]
    held_out: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        source = conversations(Path(folder), "a", names)
        for fold in range(folds):
            train, validation = read_training(data(source, validation={"share": 1 / folds, "fold": fold}))
            assert ids(train) == set(names) - ids(validation)
            held_out += ids(validation)
    assert sorted(held_out) == sorted(names)


def test_a_fold_is_another_set_of_turns_and_must_exist(tmp_path: Path) -> None:
    source = conversations(tmp_path, "a", [f"a{n}" for n in range(4)])
    found = [read_training(data(source, validation={"share": 0.5, "fold": fold})) for fold in (0, 1)]
    assert len({each.fingerprint for pair in found for each in pair if each is not None}) == 4
    assert read_training(data(source, validation={"share": 0.5}))[1] == found[0][1]
    with pytest.raises(ValueError, match=r"fold is 2, and a share of 0\.5 leaves the folds 0 to 1"):
        data(source, validation={"share": 0.5, "fold": 2})
    with pytest.raises(DataError, match=r"fold is 3, and the 4 judged training conversations"):
        read_training(data(source, validation={"share": 0.01, "fold": 3}))


def test_the_paths_of_a_tree_are_held_out_together(tmp_path: Path) -> None:
    def path(topic: int, *turns: str) -> dict[str, Any]:
        return {"number": topic, "turn": [{"number": each, "utterance": f"{topic}/{each}?"} for each in turns]}

    paths = [path(topic, *turns) for topic in range(6) for turns in (("1-1", "1-3"), ("1-1", "2-1"))]
    (tmp_path / "topics.json").write_text(json.dumps(paths))
    (tmp_path / "qrels.txt").write_text("".join(f"{topic}_2-1 0 p 1\n" for topic in range(6)))
    source = {"conversations": str(tmp_path / "topics.json"), "reader": "cast", "qrels": str(tmp_path / "qrels.txt")}
    train, validation = read_training(data(source, validation={"share": 0.5}))
    assert validation is not None
    assert not ids(train) & ids(validation)
    assert len(ids(validation)) == 3
    assert len(list(validation.queries())) == 9


def test_conversations_made_of_passages_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    text = "The tower of Pisa leans to the south. It was closed to visitors for eleven years until then."
    rows = [{"_id": f"p{n}", "title": f"Page {n}", "text": text} for n in range(30)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [conversations(tmp_path, "a", ["a1", "a2"]), {"name": "made", "reader": "passages", "sample": 30}]
    config = data(sources, validation={"share": 0.5}, corpus=[str(tmp_path / "corpus.jsonl")])
    train, validation = read_training(config)
    assert validation is not None
    assert {query.source for query in validation.queries()} == {"a"}
    assert sum(query.source == "made" for query in train.queries()) == 60


def test_a_validation_source_of_its_own_takes_its_conversations_out_of_the_training_ones(tmp_path: Path) -> None:
    source = conversations(tmp_path, "a", ["a1", "a2", "a3"])
    own = conversations(tmp_path, "v", ["a2", "v1"])
    train, validation = read_training(data(source, validation=own))
    assert (ids(train), ids(validation)) == ({"a1", "a3"}, {"a2", "v1"})
    with pytest.raises(DataError, match="holds every training conversation"):
        read_training(data(source, validation=source))


def test_a_share_that_cannot_be_held_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training conversation has a judged turn"):
        read_training(data(conversations(tmp_path, "a", ["a1"], judged=False), validation={"share": 0.5}))
    with pytest.raises(DataError, match="holds out all of the 1 training conversations"):
        read_training(data(conversations(tmp_path, "a", ["a1"]), validation={"share": 0.5}))


def test_a_conversation_held_out_under_another_id_is_not_trained_on(tmp_path: Path) -> None:
    first = conversations(tmp_path, "a", ["x", "y"])
    again = {**first, "name": "again", "prefix_ids": True}
    train, _ = read_training(data([first, again], validation={**conversations(tmp_path, "v", ["x"]), "name": "v"}))
    assert ids(train) == {"y", "again:y"}
    train, validation = read_training(data([first, again], validation={"share": 0.25}))
    (held_out,) = {one.removeprefix("again:") for one in ids(validation)}
    assert {one.removeprefix("again:") for one in ids(train)} == {"x", "y"} - {held_out}


def test_conversations_that_begin_alike_are_different_ones(tmp_path: Path) -> None:
    train, validation = conversations(tmp_path, "a", ["x"]), conversations(tmp_path, "v", ["y"])
    path = Path(train["conversations"])
    path.write_text(path.read_text().replace("question 1 of x", "question 1 of y"))
    assert ids(read_training(data(train, validation=validation))[0]) == {"x"}
