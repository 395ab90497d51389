"""Scores by a language model equal slow references that are written from the methods' formulas, prompt by prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raydistill.errors import ConfigError, TeacherError
from raydistill.scoring.judges import Asker, Candidates, Listwise, Pairwise, Pointwise, Tally
from raydistill.scoring.opening import written_answers
from raydistill.scoring.preference import bradley_terry
from raydistill.scoring.prompts import LETTERS, PROMPTS, find_prompt, render
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Choices, Failure
from raydistill.teachers.openai_engine import OpenAiEngine, Patience
from raydistill.teachers.openai_protocol import Wording
from raydistill.teachers.transformers_engine import ModelTokenizer
from tests.teachers.endpoint import prompt_of, serving, status

TURNS = [
    Candidates("who wrote it?", [f"passage {n} says {'so much ' * (n % 4)}" for n in range(7)]),
    Candidates("and when?", ["in 1814", "nobody knows", "last summer"]),
    Candidates("why", ["only this one"]),
]


def asker(engine: Any, prompt: str, answers: Sequence[str], folder: Any, tokenizer: Any = None, budget: int = 2000) -> Asker:
    cache = GenerationCache(str(folder), EngineIdentity("judge", "float32"))
    return Asker(engine, tokenizer or engine.tokenizer, cache, PROMPTS[prompt], budget, tuple(answers))


class Slow:
    """The model alone: one prompt, one forward pass, the whole softmax."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = ModelTokenizer(folder)

    @torch.no_grad()
    def log_probabilities(self, prompt: str, query: str, passages: Sequence[str], answers: Sequence[str]) -> list[float]:
        text = render(PROMPTS[prompt], query, passages, 10**6, len)
        logits = self.model(torch.tensor([self.tokenizer.token_ids(text)])).logits[0, -1].double()
        every = torch.log_softmax(logits, dim=0)
        ids = [self.tokenizer.tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
        return [float(every[each]) for each in ids]


@pytest.fixture(scope="module")
def slow(judge_model: str) -> Slow:
    return Slow(judge_model)


@pytest.mark.parametrize("prompt", ["pointwise-v1", "utility-v1"])
def test_pointwise_is_the_log_odds_of_yes(judge_engine, slow, tmp_path, prompt):
    tally = Tally()
    found = Pointwise(asker(judge_engine, prompt, "yn", tmp_path)).judge(TURNS, tally)
    tokens = 0
    for turn, scores in zip(TURNS, found, strict=True):
        expected = []
        for passage in turn.passages:
            tokens += len(slow.tokenizer.token_ids(render(PROMPTS[prompt], turn.query, [passage], 10**6, len)))
            yes, no = slow.log_probabilities(prompt, turn.query, [passage], "yn")
            expected.append(yes - no)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert tally.counters() == {"prompts": 11, "cached": 0, "prompt_tokens": tokens, "failed": 0}


def test_pairwise_is_bradley_terry_over_both_orders(judge_engine, slow, tmp_path):
    found = Pairwise(asker(judge_engine, "pairwise-v1", "AB", tmp_path), opponents=10).judge(TURNS, Tally())
    for turn, scores in zip(TURNS[:2], found, strict=False):
        pairs, outcomes = list(itertools.combinations(range(len(turn.passages)), 2)), []
        for one, other in pairs:
            first, second = turn.passages[one], turn.passages[other]
            a, b = slow.log_probabilities("pairwise-v1", turn.query, [first, second], "AB")
            exchanged_a, exchanged_b = slow.log_probabilities("pairwise-v1", turn.query, [second, first], "AB")
            outcomes.append(((a - b) - (exchanged_a - exchanged_b)) / 2)
        expected = bradley_terry(*np.array(pairs).T, np.array(outcomes), len(turn.passages))
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert found[2].tolist() == [0.0]


def test_listwise_slides_windows_from_the_end_to_the_top(judge_engine, slow, tmp_path):
    found = Listwise(asker(judge_engine, "listwise-v1", LETTERS, tmp_path), window=4, step=2).judge(TURNS, Tally())
    for turn, scores in zip(TURNS, found, strict=True):
        order = list(range(len(turn.passages)))
        end = len(order)
        while True:
            start = max(0, end - 4)
            inside = order[start:end]
            liking = slow.log_probabilities(
                "listwise-v1", turn.query, [turn.passages[n] for n in inside], LETTERS[: len(inside)]
            )
            order[start:end] = [inside[n] for n in sorted(range(len(inside)), key=lambda n: -liking[n])]
            if start == 0:
                break
            end = max(end - 2, min(4, len(order)))
        size = len(order)
        expected = np.zeros(size)
        for rank, number in enumerate(order, start=1):
            expected[number] = math.log((size - rank + 0.5) / (rank - 0.5))
        np.testing.assert_allclose(scores, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("passages", "starts"), [(0, []), (1, [0]), (4, [0]), (5, [1, 0]), (8, [4, 2, 0]), (9, [5, 3, 1, 0])]
)
def test_windows_reach_from_the_end_to_the_top(judge_engine, tmp_path, passages, starts):
    judge = Listwise(asker(judge_engine, "listwise-v1", LETTERS, tmp_path), window=4, step=2)
    assert judge.starts(passages) == starts


def test_nothing_is_asked_twice(judge_engine, tmp_path):
    asked = []

    class Counting:
        tokenizer = judge_engine.tokenizer

        def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
            asked.extend(prompts)
            return judge_engine.choose(prompts, options)

    first, tally = Pairwise(asker(Counting(), "pairwise-v1", "AB", tmp_path)).judge(TURNS, Tally()), Tally()
    again = Pairwise(asker(Counting(), "pairwise-v1", "AB", tmp_path)).judge([*TURNS, TURNS[1]], tally)
    assert len(asked) == len(set(asked)) == 2 * (21 + 3)
    assert tally.cached == tally.prompts == 2 * (21 + 3 + 3)
    for one, other in zip([*first, first[1]], again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_was_answered_before_an_endpoint_stopped_is_not_asked_again(judge_engine, tmp_path):
    top = [{"token": "y", "logprob": -0.5}, {"token": "n", "logprob": -1.5}]
    answer = {"choices": [{"message": {"content": "y"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    is_open = True

    def endpoint_says(prompt: str, before: int) -> Any:
        return answer if is_open or "in 1814" in prompt else status(401, "no such key")

    def judged(url: str) -> list[Any]:
        engine = OpenAiEngine(url, Wording("judge", "chat", {}), Patience(concurrency=1, retries=0))
        return Pointwise(asker(engine, "pointwise-v1", "yn", tmp_path, judge_engine.tokenizer)).judge([TURNS[1]], Tally())

    with serving(endpoint_says) as endpoint:
        is_open = False
        with pytest.raises(TeacherError, match="HTTP 401: no such key"):
            judged(endpoint.url)
        before = len(endpoint.bodies)
        is_open = True
        (scores,) = judged(endpoint.url)
        asked = [prompt_of(body) for body in endpoint.bodies[before:]]
    assert scores.tolist() == [1.0, 1.0, 1.0]
    assert len(asked) == 2
    assert not any("in 1814" in prompt for prompt in asked)


class Moody:
    """Answers as it is told: a row of log-probabilities a prompt, or a failure."""

    def __init__(self, tokenizer: Any, answer: Any) -> None:
        self.tokenizer, self._answer = tokenizer, answer

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        rows = [self._answer(prompt, len(options)) for prompt in prompts]
        values = np.array([[math.nan] * len(options) if isinstance(row, Failure) else row for row in rows])
        return Choices(values, tuple(row if isinstance(row, Failure) else None for row in rows))


def test_what_the_model_does_not_say_is_absent(judge_engine, tmp_path):
    def answer(prompt: str, options: int) -> Any:
        if "nobody" in prompt:
            return Failure.NO_LOG_PROBABILITIES
        return [math.nan, -1.0] if "summer" in prompt else [-0.5, -1.0]

    tally = Tally()
    engine = Moody(judge_engine.tokenizer, answer)
    found = Pointwise(asker(engine, "pointwise-v1", "yn", tmp_path)).judge([TURNS[1]], tally)
    assert found[0].tolist()[0] == 0.5
    assert np.isnan(found[0]).tolist() == [False, True, True]
    counted = tally.counters()
    assert counted.pop("prompt_tokens") > 0
    assert counted == {"prompts": 3, "cached": 0, "failed": 1, "failed.no_log_probabilities": 1}
    again = Tally()
    Pointwise(asker(engine, "pointwise-v1", "yn", tmp_path)).judge([TURNS[1]], again)
    assert again.cached == 2  # a failure is not kept


def test_a_window_that_fails_keeps_its_order_and_unmentioned_letters_stay_behind(judge_engine, tmp_path):
    def answer(prompt: str, options: int) -> Any:
        if "last summer" in prompt:
            return Failure.TIMEOUT
        return [math.nan, -2.0, math.nan, -1.0] + [math.nan] * (options - 4)

    engine = Moody(judge_engine.tokenizer, answer)
    judge = Listwise(asker(engine, "listwise-v1", LETTERS, tmp_path), window=4, step=2)
    four = Candidates("q", TURNS[0].passages[:4])
    failed, liked = judge.judge([TURNS[1], four], Tally())
    assert np.isnan(failed).all()
    assert np.argsort(-liked).tolist() == [3, 1, 0, 2]


def test_long_passages_are_cut_to_the_budget_and_the_query_never(judge_engine):
    prompt = PROMPTS["pairwise-v1"]
    count = judge_engine.tokenizer.count_tokens
    query, passages = "what " * 20, ["short one", "word " * 500]
    text = render(prompt, query, passages, 600, count)
    assert 590 < count(text) <= 600
    assert "short one" in text
    assert " ".join(query.split()) in text
    assert render(prompt, query, passages, 10, count) == render(prompt, query, ["", ""], 10**6, count)
    whole = render(prompt, query, passages, 10**6, count)
    assert whole.count("word") == 500


def test_a_chat_template_takes_the_place_of_the_cue():
    text = render(PROMPTS["pointwise-v1"], "q", ["p"], 10**6, len, as_chat=lambda message: f"<user>{message}<model>")
    assert text.startswith("<user>Judge")
    assert text.endswith("Document: p<model>")
    assert render(PROMPTS["pointwise-v1"], "q", ["p"], 10**6, len).endswith("\n\nAnswer:")


def test_answers_are_written_as_single_tokens(judge_engine):
    tokenizer = judge_engine.tokenizer
    assert written_answers(tokenizer, ["y", "n"], given=False) == ("y", "n")  # " y" is two of this model's tokens
    with pytest.raises(TeacherError, match="'yes' is 3 tokens"):
        written_answers(tokenizer, ["yes", "no"], given=False)
    with pytest.raises(TeacherError, match="'yes' is 3 tokens"):
        written_answers(tokenizer, ["yes", "no"], given=True)
    with pytest.raises(TeacherError, match="two of the answers"):
        written_answers(tokenizer, ["A", "A"], given=False)


def test_words_of_a_vocabulary_follow_a_space(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*alphabet, "Ġy", "Ġn"])}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "y"), ("Ġ", "n")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="!")
    fast.save_pretrained(tmp_path)
    tokenizer = ModelTokenizer(str(tmp_path))
    assert written_answers(tokenizer, ["y", "n"], given=False) == (" y", " n")
    assert written_answers(tokenizer, ["y", "n"], given=True) == ("y", "n")
    tokenizer.tokenizer.chat_template = "{{ messages }}"
    assert written_answers(tokenizer, ["y", "n"], given=False) == ("y", "n")


def test_a_prompt_of_another_method_is_refused():
    with pytest.raises(
        ConfigError, match="'pairwise-v1' is a pairwise prompt; those for method pointwise are pointwise-v1, util"
    ):
        find_prompt("pairwise-v1", "pointwise")
    with pytest.raises(ConfigError, match="'best' is no prompt"):
        find_prompt("best", "listwise")


@pytest.mark.parametrize(("window", "step"), [(4, 4), (4, 0), (27, 10)])
def test_windows_that_cannot_slide_are_refused(judge_engine, tmp_path, window, step):
    with pytest.raises(ValueError, match="0 < step < window <= 26"):
        Listwise(asker(judge_engine, "listwise-v1", LETTERS, tmp_path), window, step)
