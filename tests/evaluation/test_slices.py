"""Parts of the turns: every turn in one group, means that add up, and a page that shows them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.evaluation.measures import Scores
from raydistill.evaluation.report_slices import slices_section
from raydistill.evaluation.slices import WORD_BOUNDS, history_words, slices, topic_label
from raydistill.evaluation.summary import Metrics


def query(number: int, words: int) -> ConversationalQuery:
    asked = words // 2
    history = (Turn("t", 1, "w " * asked, "w " * (words - asked)),) if words else ()
    return ConversationalQuery(f"q{number}", f"c{number % 4}", 1 + len(history), "and then?", history)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_every_turn_is_in_one_group_and_the_means_add_up(lengths: list[int]) -> None:
    queries = [query(number, words) for number, words in enumerate(lengths)]
    assert [history_words(each) for each in queries] == lengths
    values = np.random.default_rng(0).random((len(lengths), 2))
    scores = {"s": Scores(("RR", "R@5"), tuple(each.query_id for each in queries), values, ())}
    for found in slices(queries, scores):
        assert sum(group["queries"] for group in found["groups"]) == len(queries)
        for column, measure in enumerate(("RR", "R@5")):
            total = sum(group["queries"] * group["means"]["s"][measure] for group in found["groups"])
            assert total == pytest.approx(values[:, column].sum())
    by_words, by_conversation = slices(queries, scores)
    assert [group["label"] for group in by_conversation["groups"]] == [f"c{n}" for n in range(min(4, len(queries)))]
    assert all(group["queries"] >= min(5, len(queries)) for group in by_words["groups"])


@pytest.mark.parametrize(
    ("words", "label"), [(0, "0"), (1, "1–50"), (50, "1–50"), (51, "51–100"), (800, "401–800"), (801, "801 and more")]
)
def test_a_group_is_labelled_by_its_words(words: int, label: str) -> None:
    queries = [query(number, words) for number in range(6)]
    scores = {"s": Scores(("RR",), tuple(each.query_id for each in queries), np.zeros((6, 1)), ())}
    assert [group["label"] for group in slices(queries, scores)[0]["groups"]] == [label]
    assert WORD_BOUNDS[0] == 0


def test_turns_are_told_apart_by_whether_the_student_read_all_of_them() -> None:
    queries, cut = [query(number, 10) for number in range(4)], np.array([False, True, True, False])
    values = np.array([[1.0], [0.5], [0.0], [0.0]])
    scores = {"s": Scores(("RR",), tuple(each.query_id for each in queries), values, ())}
    [found] = [each for each in slices(queries, scores, cut) if each["name"] == "reading"]
    means = {group["label"]: (group["queries"], group["means"]["s"]["RR"]) for group in found["groups"]}
    assert means == {"read whole": (2, 0.5), "cut": (2, 0.25)}
    [found] = [each for each in slices(queries, scores, ~np.zeros(4, dtype=bool)) if each["name"] == "reading"]
    assert [group["label"] for group in found["groups"]] == ["cut"]


def told(number: int, topics: str) -> ConversationalQuery:
    """A turn whose history and itself have the topics of a word's letters, "-" for none."""
    names = [letter.strip("-") for letter in topics]
    history = tuple(Turn(f"t{n}", n + 1, "a", "b", topic=name) for n, name in enumerate(names[:-1]))
    return ConversationalQuery(f"q{number}", "c", len(names), "and then?", history, topic=names[-1])


def test_turns_are_told_apart_by_whether_they_change_the_topic() -> None:
    topics = ["a", "-a", "aa", "ab", "a-a", "a-b", "aba", "-", "aa-"]
    labels = ["first topic", "first topic", "same topic", "new topic", "same topic", "new topic", "new topic", "", ""]
    queries = [told(number, word) for number, word in enumerate(topics)]
    assert [topic_label(each) for each in queries] == labels
    scores = {"s": Scores(("RR",), tuple(each.query_id for each in queries), np.arange(9.0)[:, None], ())}
    by_topic = slices(queries, scores)[1]
    assert by_topic["name"] == "topic"
    found = {group["label"]: (group["queries"], group["means"]["s"]["RR"]) for group in by_topic["groups"]}
    assert found == {"first topic": (2, 0.5), "same topic": (2, 3.0), "new topic": (3, pytest.approx(14 / 3))}


def test_the_report_shows_the_groups(make_metrics: Callable[..., Metrics]) -> None:
    metrics = make_metrics()
    section = slices_section(metrics)
    for group in metrics["slices"][0]["groups"]:
        assert group["label"] in section
    assert "by conversation" in section
    assert "by change of topic" not in section
    assert "by conversation" not in slices_section(make_metrics(roles=("baseline",)))
    by_topic = {"name": "topic", "unit": "change of topic", "groups": metrics["slices"][0]["groups"][:1]}
    assert "by change of topic" in slices_section({**metrics, "slices": [*metrics["slices"], by_topic]})
    assert slices_section({**metrics, "slices": []}) == ""
