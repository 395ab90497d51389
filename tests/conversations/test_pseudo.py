"""Passages become conversations that leave out what was just named, the same ones whatever the order of the corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import CorpusConfig, PassageSource
from raydistill.conversations.pseudo import passage_topic, read_passage_conversations
from raydistill.conversations.records import ConversationSet, Passage
from raydistill.errors import DataError

TEXT = (
    "The bell tower of Pisa leans to the south. Building the Leaning Tower took almost two hundred years in all. Short one. "
    "It was closed to visitors for eleven years until the ground was made firm."
)


def source(sample: int, topics: int = 2, seed: int = 0) -> PassageSource:
    return PassageSource(reader="passages", name="made", sample=sample, topics=topics, seed=seed)


def corpus(folder: Path, number: int = 20, shuffled: bool = False) -> str:
    rows = [{"_id": f"p{n}", "title": f"Tower {n}", "text": TEXT} for n in range(number)]
    if shuffled:
        random.Random(1).shuffle(rows)
    path = folder / ("shuffled.jsonl" if shuffled else "corpus.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    return str(path)


def test_what_the_title_names_is_left_out_of_what_is_asked_and_stands_in_the_rewrite() -> None:
    topic = passage_topic(Passage("p", f"Leaning Tower\n{TEXT}", "Leaning Tower"))
    assert topic is not None
    assert (topic.title, topic.opening) == ("Leaning Tower", "The bell tower of Pisa leans to the south.")
    assert topic.asked[0] == (
        "Building the took almost two hundred years in all.",
        "Building the Leaning Tower took almost two hundred years in all.",
    )
    assert len(topic.asked) == 2


@pytest.mark.parametrize(
    "passage",
    [
        Passage("p", TEXT, ""),
        Passage("p", "Only one sentence that is long enough to be spoken.", "Title"),
        Passage("p", "Too short. Also short. Never mind. And so on it goes.", "Title"),
        Passage("p", TEXT, "A title of so many words that nobody would ever say it like that at all"),
        Passage("p", "\n", ""),
    ],
)
def test_a_passage_without_a_title_or_two_sentences_is_no_topic(passage: Passage) -> None:
    assert passage_topic(passage) is None


def test_a_first_line_that_is_no_sentence_is_a_title() -> None:
    topic = passage_topic(Passage("p", f"\n Leaning  Tower \n\n{TEXT}", ""))
    assert topic is not None
    assert topic.title == "Leaning Tower"


def test_a_conversation_moves_from_topic_to_topic_and_each_second_turn_has_its_passage_as_gold(tmp_path: Path) -> None:
    found = read_passage_conversations(source(sample=5, topics=2), CorpusConfig(corpus=(corpus(tmp_path),)))
    assert [len(one.turns) for one in found.conversations] == [4, 4, 2]
    first, second, third, fourth = list(found.queries())[:4]
    assert [each.depth for each in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert first.question == first.rewrite == second.history[0].question
    assert second.rewrite.startswith(f"{first.question} ")
    assert "tower" not in second.question.casefold().split()
    assert second.history[0].answer == "The bell tower of Pisa leans to the south."
    assert third.question != first.question
    assert len(fourth.history) == 3
    passage_id = second.query_id.removeprefix("made:").removesuffix("_2")
    assert found.qrels[second.query_id] == {passage_id: 1}
    assert f"Tower {passage_id.removeprefix('p')}" == first.question
    assert first.query_id not in found.qrels
    assert {each.source for each in found.queries()} == {"made"}


def test_the_sample_depends_on_ids_and_seed_but_not_on_the_order_of_the_corpus(tmp_path: Path) -> None:
    def read(path: str, sample: int = 6, seed: int = 0) -> ConversationSet:
        return read_passage_conversations(source(sample, seed=seed), CorpusConfig(corpus=(path,)))

    plain, shuffled = corpus(tmp_path), corpus(tmp_path, shuffled=True)
    assert read(plain).conversations == read(shuffled).conversations
    assert read(plain).conversations != read(plain, seed=1).conversations
    larger = {query.query_id for query in read(plain, sample=8).queries()}
    assert {query.query_id for query in read(plain).queries()} < larger
    assert len({read(plain).fingerprint, read(plain, seed=1).fingerprint, read(shuffled).fingerprint}) == 3


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=40))
def test_whatever_the_passage_a_topic_can_be_asked(text: str, title: str) -> None:
    topic = passage_topic(Passage("p", text, title))
    if topic is not None:
        assert topic.title.strip()
        assert all(left.strip() and whole.strip() for left, whole in topic.asked)


def test_a_corpus_without_any_topic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"_id": "p", "text": "words"}) + "\n")
    with pytest.raises(DataError, match=r"no passage of the corpus .* has a title and two sentences"):
        read_passage_conversations(source(3), CorpusConfig(corpus=(str(tmp_path / "c.jsonl"),)))


@pytest.mark.real_data
@pytest.mark.parametrize("domain", ["clapnq", "cloud"])
def test_real_corpora_give_as_many_topics_as_asked_for(shared_data: Path, domain: str) -> None:
    path = str(shared_data / "mtrag" / domain / "corpus.jsonl.gz")
    found = read_passage_conversations(source(sample=200, topics=4), CorpusConfig(corpus=(path,)))
    assert (len(found.conversations), len(list(found.queries())), len(found.qrels)) == (50, 400, 200)
