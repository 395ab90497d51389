"""Rewriting with the cache: nothing that was generated is generated again, failures are retried once, then fall back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raydistill.storage.store import open_store
from raydistill.teachers.cache import EngineIdentity, GenerationCache, generation_key
from raydistill.teachers.engine import Failure, Generation, Sampling
from raydistill.teachers.prompts import find_template
from raydistill.teachers.rewriting import Retry, Rewriter, RewriteRequest, recorded_row

IDENTITY = EngineIdentity("a/model@main", "float32")
FIRST, HISTORY = "who founded Rome?", (("who founded Rome?", "Romulus."),)
REQUESTS = [
    RewriteRequest("q1", FIRST, ()),
    RewriteRequest("q2", "and when?", HISTORY),
    RewriteRequest("q3", "why?", HISTORY),
]
Answer = Callable[[str, Sampling], Generation]


def ok(text: str, finish_reason: str = "stop") -> Generation:
    return Generation(text, 10, 5, finish_reason)


class CountingEngine:
    """An engine that answers by a rule and remembers every prompt that it was paid for."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[tuple[str, Sampling]] = []

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        self.calls += [(prompt, sampling) for prompt in prompts]
        return [self.answer(prompt, sampling) for prompt in prompts]


class WordTokenizer:
    has_chat_template = False

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def as_chat(self, message: str) -> str:
        raise AssertionError("there is no chat template")


def echo(prompt: str, sampling: Sampling) -> Generation:
    return ok(f"rewritten: {prompt.splitlines()[-2]} said so")


def rewriter(
    root: Path,
    engine: CountingEngine,
    identity: EngineIdentity = IDENTITY,
    sampling: Sampling | None = None,
    **more: Any,
) -> Rewriter:
    cache = GenerationCache(str(root), identity)
    template = find_template("plain-v1")
    return Rewriter(engine, WordTokenizer(), cache, template, 12, 1000, sampling or Sampling(), **more)


def test_a_second_run_calls_the_engine_for_nothing_and_answers_the_same(tmp_path: Path) -> None:
    first, second = CountingEngine(echo), CountingEngine(echo)
    rows, counters = rewriter(tmp_path, first).rewrite(REQUESTS)
    again, counters_again = rewriter(tmp_path, second).rewrite(REQUESTS)
    assert (len(first.calls), len(second.calls)) == (3, 0)
    assert rows == again
    assert (counters["cached"], counters_again["cached"]) == (0, 3)


def test_only_what_is_new_reaches_the_engine(tmp_path: Path) -> None:
    rewriter(tmp_path, CountingEngine(echo)).rewrite(REQUESTS[:2])
    engine = CountingEngine(echo)
    rewriter(tmp_path, engine).rewrite([*REQUESTS, REQUESTS[2]])
    assert [prompt for prompt, _ in engine.calls] == ["user: who founded Rome?\nsystem: Romulus.\nuser: why?\nrewrite:"]


@pytest.mark.parametrize(
    ("identity", "sampling"),
    [
        (EngineIdentity("another/model@main", "float32"), Sampling()),
        (EngineIdentity("a/model@other", "float32"), Sampling()),
        (EngineIdentity("a/model@main", "bfloat16"), Sampling()),
        (IDENTITY, Sampling(max_new_tokens=65)),
        (IDENTITY, Sampling(num_beams=4)),
    ],
)
def test_another_model_precision_or_decoding_is_another_generation(
    tmp_path: Path, identity: EngineIdentity, sampling: Sampling
) -> None:
    rewriter(tmp_path, CountingEngine(echo)).rewrite(REQUESTS)
    engine = CountingEngine(echo)
    rewriter(tmp_path, engine, identity, sampling).rewrite(REQUESTS)
    assert len(engine.calls) == 3


def test_the_prompt_version_is_part_of_the_key() -> None:
    assert generation_key(IDENTITY, "plain-v1", Sampling(), "p") != generation_key(IDENTITY, "plain-v2", Sampling(), "p")


def test_a_failure_is_retried_once_by_sampling_and_then_falls_back(tmp_path: Path) -> None:
    def answer(prompt: str, sampling: Sampling) -> Generation:
        if "why?" in prompt:
            return ok("I cannot rewrite this.")
        if "and when?" in prompt:
            return ok("When was Rome founded?") if sampling.temperature else ok("")
        return ok(FIRST)

    engine = CountingEngine(answer)
    rows, counters = rewriter(tmp_path, engine).rewrite(REQUESTS)
    assert [(row.text, row.failure) for row in rows] == [
        (FIRST, None),
        ("When was Rome founded?", None),
        ("why?", "refusal"),
    ]
    assert [sampling.temperature for _, sampling in engine.calls] == [0, 0, 0, 0.7, 0.7]
    assert rows[2].raw == "I cannot rewrite this."
    assert (rows[1].prompt_tokens, rows[1].generated_tokens) == (20, 10)
    assert counters == {
        "queries": 3,
        "failed": 1,
        "failed.refusal": 1,
        "prompt_tokens": 50,
        "generated_tokens": 25,
        "cached": 0,
        "retried": 2,
        "recovered": 1,
    }


def test_what_the_engine_could_not_answer_is_not_kept_so_a_later_run_tries_again(tmp_path: Path) -> None:
    failed = Generation("", 0, 0, "error", Failure.ENGINE_ERROR, "out of memory")
    rows, _ = rewriter(tmp_path, CountingEngine(lambda prompt, sampling: failed)).rewrite(REQUESTS[:1])
    assert (rows[0].text, rows[0].failure, rows[0].raw) == (FIRST, "engine_error", "out of memory")
    engine = CountingEngine(echo)
    rows, _ = rewriter(tmp_path, engine).rewrite(REQUESTS[:1])
    assert len(engine.calls) == 1
    assert rows[0].failure is None


def test_writers_that_share_a_root_add_up(tmp_path: Path) -> None:
    one, two = rewriter(tmp_path, CountingEngine(echo)), rewriter(tmp_path, CountingEngine(echo))
    one.rewrite(REQUESTS[:2])
    two.rewrite(REQUESTS[1:])
    assert len(GenerationCache(str(tmp_path), IDENTITY)) == 3


def test_a_damaged_part_is_forgotten_and_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewriter(tmp_path, CountingEngine(echo)).rewrite(REQUESTS)
    (key,) = [info.key for info in open_store(str(tmp_path)).list("cache/teachers/")]
    path = tmp_path / key
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10] + b"0123456789")
    cache = GenerationCache(str(tmp_path), IDENTITY)
    assert (len(cache), cache.damaged) == (0, 1)
    assert "damaged part" in caplog.text
    rewriter(tmp_path, CountingEngine(echo)).rewrite(REQUESTS)
    engine = CountingEngine(echo)
    rewriter(tmp_path, engine).rewrite(REQUESTS)
    assert not engine.calls


def test_the_cache_lives_in_object_storage_too(s3_root: str) -> None:
    cache = GenerationCache(s3_root, IDENTITY)
    cache.add({"k": ok("text")})
    assert GenerationCache(s3_root, IDENTITY).find("k") == ok("text")


def test_however_many_parts_there_are_each_generation_is_found_as_it_was(tmp_path: Path) -> None:
    parts, cache = 150, GenerationCache(str(tmp_path), IDENTITY)
    made = [{f"{part}/{n}": Generation(f"text ü\n{part} {n}", n, part, "stop") for n in range(5)} for part in range(parts)]
    for each in made:
        cache.add(each)
    read = GenerationCache(str(tmp_path), IDENTITY)
    assert len(read) == len(cache) == 5 * parts
    for each in made:
        assert {key: read.find(key) for key in each} == {key: cache.find(key) for key in each} == each
    assert read.find("150/0") is None
    read.add(made[0])
    assert len(list(open_store(str(tmp_path)).list("cache/teachers/"))) == parts, "what is known is not written again"


def test_history_beyond_the_most_recent_turns_is_not_shown(tmp_path: Path) -> None:
    engine = CountingEngine(echo)
    history = tuple((f"q{n}?", f"a{n}") for n in range(9))
    Rewriter(
        engine, WordTokenizer(), GenerationCache(str(tmp_path), IDENTITY), find_template("plain-v1"), 2, 100, Sampling()
    ).rewrite([RewriteRequest("q", "now?", history)])
    assert engine.calls[0][0] == "user: q7?\nsystem: a7\nuser: q8?\nsystem: a8\nuser: now?\nrewrite:"


def test_a_recorded_text_is_parsed_like_a_fresh_one_and_a_missing_one_says_so() -> None:
    texts = {"q1": 'Rewrite: "Who founded Rome?"', "q2": "I cannot rewrite this."}
    rows = [recorded_row(request.query_id, request.question, texts) for request in REQUESTS]
    assert [(row.text, row.failure) for row in rows] == [
        ("Who founded Rome?", None),
        ("and when?", "refusal"),
        ("why?", "missing"),
    ]


def test_the_first_sample_that_holds_a_rewrite_counts_and_the_others_are_alternatives(tmp_path: Path) -> None:
    said = ["", "What is it, then?", "Why is it so?", "What is it, then?", "Why is that?"]
    drawn = Sampling(temperature=1.0, seed=7)
    engine = CountingEngine(lambda prompt, sampling: ok(said[sampling.seed - 7]))
    (row,), counters = rewriter(tmp_path, engine, sampling=drawn, samples=5).rewrite(REQUESTS[2:])
    assert (row.text, row.failure) == ("What is it, then?", None)
    assert row.alternatives == ("Why is it so?", "Why is that?")
    assert (row.prompt_tokens, row.generated_tokens, counters["retried"]) == (50, 25, 0)
    # More samples later: those that were paid for are not drawn again.
    more = CountingEngine(lambda prompt, sampling: ok(said[sampling.seed - 7]))
    assert rewriter(tmp_path, more, sampling=drawn, samples=4).rewrite(REQUESTS[2:])[1]["cached"] == 4
    assert not more.calls


def test_retries_go_on_with_seeds_of_their_own_until_one_holds_a_rewrite(tmp_path: Path) -> None:
    engine = CountingEngine(lambda prompt, sampling: ok("Why is it so?" if sampling.seed == 3 else ""))
    (row,), counters = rewriter(tmp_path, engine, retry=Retry(tries=5, temperature=1.2)).rewrite(REQUESTS[2:])
    assert (row.text, row.failure) == ("Why is it so?", None)
    assert [(sampling.temperature, sampling.seed) for _, sampling in engine.calls] == [(0, 0), (1.2, 1), (1.2, 2), (1.2, 3)]
    assert (counters["retried"], counters["recovered"]) == (1, 1)
    never = CountingEngine(lambda prompt, sampling: ok(""))
    (row,), _ = rewriter(tmp_path / "never", never, retry=Retry(tries=0)).rewrite(REQUESTS[2:])
    assert (row.text, row.failure, len(never.calls)) == ("why?", "empty", 1)


def test_a_retry_may_take_another_prompt_with_its_own_way_to_mark_the_query(tmp_path: Path) -> None:
    def answer(prompt: str, sampling: Sampling) -> Generation:
        return ok("It is about Rome.\nQuery: Why was Rome founded?") if "First think" in prompt else ok("")

    engine = CountingEngine(answer)
    retry = Retry(template=find_template("chain-of-thought-v1"))
    (row,), _ = rewriter(tmp_path, engine, retry=retry).rewrite(REQUESTS[2:])
    assert (row.text, row.failure) == ("Why was Rome founded?", None)
    assert len(engine.calls) == 2


def test_answer_and_facts_reach_the_prompts_that_show_them(tmp_path: Path) -> None:
    request = RewriteRequest("q", "why?", HISTORY, "Because.", ("I run.",))
    for name, shown in (("answer-aware-v1", "system: Because."), ("personal-v1", "- I run."), ("zero-shot-v1", "")):
        engine = CountingEngine(echo)
        cache = GenerationCache(str(tmp_path), IDENTITY)
        Rewriter(engine, WordTokenizer(), cache, find_template(name), 12, 1000, Sampling()).rewrite([request])
        prompt = engine.calls[0][0]
        assert [line for line in ("system: Because.", "- I run.") if line in prompt.splitlines()] == [shown] * bool(shown)
