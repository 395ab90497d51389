"""The transformers engine: an answer depends on prompt and sampling, never on its batch; a bad prompt fails alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydistill.errors import TeacherError
from raydistill.teachers.engine import Failure, Generation, Sampling
from raydistill.teachers.transformers_engine import (
    ModelTokenizer,
    TransformersEngine,
    _GumbelSampler,
    model_positions,
    token_budget_batches,
)

PROMPTS = ["rewrite:", "user: who founded Rome?\nrewrite:", "a", "user: when was it, and by whom exactly?\nrewrite:", "bc"]
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.5, top_p=0.9, seed=3)


def engine(folder: str, batch_tokens: int = 8192, stop_at_newline: bool = False) -> TransformersEngine:
    return TransformersEngine(
        folder,
        ModelTokenizer(folder),
        dtype="float32",
        batch_tokens=batch_tokens,
        stop_at_newline=stop_at_newline,
        device="cpu",
    )


@pytest.mark.parametrize("sampling", [GREEDY, replace(GREEDY, num_beams=3), SAMPLED], ids=["greedy", "beams", "sampled"])
@pytest.mark.parametrize("fixture", ["tiny_causal", "tiny_seq2seq"])
def test_batched_answers_equal_those_given_one_by_one_in_input_order(
    request: pytest.FixtureRequest, fixture: str, sampling: Sampling
) -> None:
    tested = engine(request.getfixturevalue(fixture))
    together = tested.generate(PROMPTS, sampling)
    alone = [tested.generate([prompt], sampling)[0] for prompt in PROMPTS]
    tested.batch_tokens = 60
    in_small_batches = tested.generate(PROMPTS, sampling)
    assert together == alone == in_small_batches
    assert len({answer.text for answer in together}) > 1
    assert all(answer.failure is None and answer.generated_tokens <= 12 for answer in together)
    assert [answer.prompt_tokens for answer in together] == [len(prompt.encode()) for prompt in PROMPTS]


def test_sampling_repeats_with_its_seed_and_changes_with_another(tiny_causal: str) -> None:
    first, again = (engine(tiny_causal).generate(PROMPTS, SAMPLED) for _ in range(2))
    other = engine(tiny_causal).generate(PROMPTS, replace(SAMPLED, seed=4))
    assert first == again
    assert [one.text for one in first] != [one.text for one in other]


def test_draws_follow_the_softmax_within_the_nucleus() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0])
    rows = 4000
    for top_p in (1.0, 0.8):
        sampler = _GumbelSampler([str(n) for n in range(rows)], Sampling(temperature=0.7, top_p=top_p), torch.device("cpu"))
        draws = sampler(torch.empty(rows, 0, dtype=torch.long), logits.repeat(rows, 1)).argmax(dim=1)
        expected = (logits / 0.7).softmax(dim=0)
        if top_p < 1:
            expected = torch.where(expected.cumsum(0) - expected < top_p, expected, 0.0)
            expected /= expected.sum()
        assert torch.bincount(draws, minlength=4) / rows == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("prompt", ["", "x" * 200, "who is ☃?"], ids=["empty", "too long", "not in the model"])
def test_a_prompt_that_fails_fails_alone(tiny_causal: str, prompt: str) -> None:
    tested = engine(tiny_causal)
    good = tested.generate(PROMPTS, GREEDY)
    mixed = tested.generate([*PROMPTS[:2], prompt, *PROMPTS[2:]], GREEDY)
    assert mixed[:2] + mixed[3:] == good
    assert (mixed[2].failure, mixed[2].finish_reason, mixed[2].text) == (Failure.ENGINE_ERROR, "error", "")
    assert mixed[2].detail


def test_memory_that_runs_out_makes_batches_smaller_and_loses_nothing(
    tiny_causal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = engine(tiny_causal)
    expected = tested.generate(PROMPTS, GREEDY)
    real, sizes = tested.model.generate, []

    def generate_in_little_memory(**inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        answer: torch.Tensor = real(**inputs)
        return answer

    monkeypatch.setattr(tested.model, "generate", generate_in_little_memory)
    assert tested.generate(PROMPTS, GREEDY) == expected
    assert max(sizes) > 2
    assert tested.batch_tokens < 8192


def test_newline_stop_keeps_the_first_line_that_has_something_in_it(tiny_causal: str) -> None:
    prompts = [f"user: question {n}?\nrewrite:" for n in range(60)]
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=5)
    whole = engine(tiny_causal).generate(prompts, sampling)
    stopped = engine(tiny_causal, stop_at_newline=True).generate(prompts, sampling)
    with_lines = [n for n, one in enumerate(whole) if "\n" in one.text.strip()]
    assert with_lines, "the random model never wrote two lines; choose another seed"
    for n, one in enumerate(whole):
        assert stopped[n].text.strip() == one.text.strip().partition("\n")[0].strip()
    for n in with_lines:
        assert stopped[n].finish_reason == "stop"
        assert stopped[n].generated_tokens < whole[n].generated_tokens


def test_the_reason_to_finish_tells_a_full_stop_from_the_limit(tiny_causal: str) -> None:
    answers = engine(tiny_causal).generate([str(n) for n in range(200)], Sampling(max_new_tokens=20, temperature=1.0))

    def is_consistent(answer: Generation) -> bool:
        return (answer.generated_tokens == 20) == (answer.finish_reason == "length")

    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert all(is_consistent(answer) for answer in answers)


def test_a_chat_template_that_writes_special_tokens_gets_no_second_ones(tiny_causal: str, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(tiny_causal)
    assert not tokenizer.has_chat_template
    tokenizer.tokenizer.chat_template = "<s>[{{ messages[0]['content'] }}]{% if add_generation_prompt %}>{% endif %}"
    prompt = tokenizer.as_chat("hi")
    assert prompt == "<s>[hi]>"
    assert tokenizer.token_ids(prompt).count(tokenizer.tokenizer.bos_token_id) == 1


def test_a_model_that_cannot_be_loaded_is_named_with_a_fix(tmp_path: Path, tiny_causal: str) -> None:
    with pytest.raises(TeacherError, match=r"teacher model .*nothing cannot be loaded .*; check the name"):
        ModelTokenizer(str(tmp_path / "nothing"))
    with pytest.raises(TeacherError, match=r"teacher model .*nothing cannot be loaded"):
        TransformersEngine(str(tmp_path / "nothing"), ModelTokenizer(tiny_causal), device="cpu")
    with pytest.raises(TeacherError, match="cannot be loaded"):
        model_positions(str(tmp_path / "nothing"), None, False)


def test_positions_are_those_of_the_configuration(tiny_causal: str, tiny_seq2seq: str) -> None:
    assert model_positions(tiny_causal, None, False) == (128, True)
    assert model_positions(tiny_seq2seq, None, False) == (None, False)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_prompt_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= budget


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_auto_is_bfloat16_and_float32_answers_equal_the_cpu(tiny_causal: str) -> None:
    tokenizer = ModelTokenizer(tiny_causal)
    assert TransformersEngine(tiny_causal, tokenizer).model.dtype == torch.bfloat16
    on_gpu = TransformersEngine(tiny_causal, tokenizer, dtype="float32").generate(PROMPTS, GREEDY)
    assert on_gpu == engine(tiny_causal).generate(PROMPTS, GREEDY)


def test_choices_are_the_softmax_at_the_last_token_whatever_the_batch(tiny_causal: str) -> None:
    tested, options = engine(tiny_causal), ["y", "n", "?"]
    chosen = tested.choose(PROMPTS, options)
    for prompt, row in zip(PROMPTS, chosen.log_probabilities, strict=True):
        ids = tested.tokenizer.token_ids(prompt)
        with torch.no_grad():
            last = tested.model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)
        wanted = [float(last[tested.tokenizer.token_ids(option)[-1]]) for option in options]
        assert row == pytest.approx(wanted, abs=1e-5)
    assert chosen.failures == (None,) * len(PROMPTS)
    tested.batch_tokens = 60
    assert tested.choose(PROMPTS, options).log_probabilities == pytest.approx(chosen.log_probabilities, abs=1e-5)


def test_a_prompt_that_does_not_fit_has_no_choice_and_an_option_must_be_one_token(
    tiny_causal: str, tiny_seq2seq: str
) -> None:
    chosen = engine(tiny_causal).choose(["x" * 129, "a"], ["y"])
    assert chosen.failures == (Failure.ENGINE_ERROR, None)
    assert [bool(value) for value in chosen.log_probabilities[:, 0] == chosen.log_probabilities[:, 0]] == [False, True]
    with pytest.raises(TeacherError, match="the option 'yes' is 3 tokens"):
        engine(tiny_causal).choose(["a"], ["yes"])
    with pytest.raises(TeacherError, match="choosing needs a causal model"):
        engine(tiny_seq2seq).choose(["a"], ["y"])
