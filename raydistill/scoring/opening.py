"""Which judge a scorer's configuration asks for, and what identifies it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydistill.config import BiEncoderScorerConfig, CrossEncoderScorerConfig, LlmScorerConfig, ScorerConfig
from raydistill.errors import ConfigError, TeacherError
from raydistill.model_source import model_identity
from raydistill.scoring.judges import Asker, Judge, Listwise, Pairwise, Pointwise
from raydistill.scoring.prompts import ScoringPrompt, find_prompt
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engines import engine_identity, open_choosing
from raydistill.teachers.rewriting import PromptTokenizer


def scorer_identity(scorer: ScorerConfig) -> str:
    """Return what decides a scorer's numbers beside its settings. Raises ConfigError when a model is not here."""
    if isinstance(scorer, CrossEncoderScorerConfig | BiEncoderScorerConfig):
        encoder = scorer.encoder
        return model_identity(encoder.model, encoder.revision, field=f"scorers.{scorer.name}.encoder.model")
    return _identity(scorer).key


def prompt_of(scorer: LlmScorerConfig) -> ScoringPrompt:
    """Return a scorer's prompt. Raises ConfigError when there is none of that name for its method."""
    return find_prompt(scorer.prompt or f"{scorer.method}-v1", scorer.method)


def check_scorer(scorer: ScorerConfig) -> None:
    """Raise ConfigError, before anything is computed, when a scorer's model, prompt or answers cannot be used; endpoints are
    asked elsewhere."""
    field = f"scorers.{scorer.name}"
    if isinstance(scorer, CrossEncoderScorerConfig):
        from raydistill.reranking.cross_encoder import check_cross_encoder

        check_cross_encoder(scorer.encoder, f"{field}.encoder")
        return
    if isinstance(scorer, BiEncoderScorerConfig):
        from raydistill.encoders.dense import check_dense_encoder

        check_dense_encoder(scorer.encoder, f"{field}.encoder")
        return
    prompt = prompt_of(scorer)
    if scorer.llm.engine == "openai":
        return  # its vocabulary is its own
    from raydistill.teachers.transformers_engine import ModelTokenizer

    llm = scorer.llm
    try:
        tokenizer = ModelTokenizer(llm.model, llm.revision, llm.trust_remote_code)
    except TeacherError as error:
        raise ConfigError(f"{field}.llm.model: {error}") from error
    try:
        written_answers(tokenizer, _wanted(scorer, prompt), given=scorer.options is not None)
    except TeacherError as error:
        advice = f"; give {field}.options two words that are" if scorer.method == "pointwise" else ""
        raise ConfigError(f"{field}: {error}{advice}") from error


def open_judge(scorer: ScorerConfig, root: str, group_name: str = "scorer") -> Judge:
    """Return what judges for a scorer. Raises ConfigError or TeacherError when it cannot be opened.

    Args:
        root: run root, where choices that were paid for are kept.
        group_name: what the names of placement groups begin with, for engines that have them.
    """
    # Imported here: they need torch, and what only joins scores does not.
    if isinstance(scorer, CrossEncoderScorerConfig):
        from raydistill.scoring.reading import ReadingJudge

        return ReadingJudge(scorer.encoder, f"scorers.{scorer.name}.encoder")
    if isinstance(scorer, BiEncoderScorerConfig):
        from raydistill.scoring.similarity import SimilarityJudge

        return SimilarityJudge(scorer.encoder, scorer.scale, f"scorers.{scorer.name}.encoder")
    prompt = prompt_of(scorer)
    engine, tokenizer, budget = open_choosing(scorer.llm, group_name, _section(scorer))
    answers = written_answers(tokenizer, _wanted(scorer, prompt), given=scorer.options is not None)
    cache = GenerationCache(root, _identity(scorer))
    asker = Asker(engine, tokenizer, cache, prompt, budget, answers)
    if scorer.method == "pointwise":
        return Pointwise(asker)
    if scorer.method == "pairwise":
        return Pairwise(asker, scorer.opponents)
    return Listwise(asker, scorer.window, scorer.step)


def written_answers(tokenizer: PromptTokenizer, answers: Sequence[str], given: bool) -> tuple[str, ...]:
    """Return answers in the form in which a model writes them as a single token: after a chat template they begin the line,
    else they follow a space, which most vocabularies have as part of the word.

    Args:
        given: the user wrote them; then they stay as they are.

    Raises TeacherError where an answer is several tokens in every form, or two are the same token.
    """
    plain = tuple(answers)
    model: Any = getattr(tokenizer, "tokenizer", None)
    if model is None:
        return plain  # an endpoint's own vocabulary; its answers are compared without the space
    from raydistill.teachers.transformers_engine import option_ids

    spaced = tuple(f" {answer}" for answer in plain)
    forms = [plain] if given else [plain, spaced] if tokenizer.has_chat_template else [spaced, plain]
    refused: TeacherError | None = None
    for form in forms:
        try:
            ids = option_ids(tokenizer, form)  # type: ignore[arg-type]
        except TeacherError as error:
            refused = error
            continue
        if len(set(ids)) == len(ids):
            return form
        refused = TeacherError(f"two of the answers {', '.join(form)} are one token in this model's vocabulary")
    assert refused is not None
    raise refused


def _section(scorer: LlmScorerConfig) -> str:
    return f"scorers.{scorer.name}.llm"


def _identity(scorer: LlmScorerConfig) -> EngineIdentity:
    return engine_identity(scorer.llm, _section(scorer))


def _wanted(scorer: LlmScorerConfig, prompt: ScoringPrompt) -> tuple[str, ...]:
    if scorer.options is not None:
        return scorer.options
    return prompt.options[: scorer.window] if scorer.method == "listwise" else prompt.options
