"""The model card of a student: what it is, what it was trained on and how, what it measured.

A student gets one when training ends, with what its validation measured. Beside the run's report lies another, with what was
measured on the test turns: the one to give the student away with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

import yaml

from raydistill.config import (
    ConversationSource,
    DistillConfig,
    LlmScorerConfig,
    RecordedTeacherConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from raydistill.config.data import PassageSource
from raydistill.config.documents import DocumentsConfig, LexicalDocumentsConfig


def model_card(
    config: DistillConfig,
    test: Mapping[str, Mapping[str, float]] | None = None,
    validation: Mapping[str, float] | None = None,
) -> str:
    """Return the card as Markdown with a YAML header, as hubs and sentence-transformers expect it.

    Args:
        config: of the run. Files and folders are named without the place where they lay.
        test: on the test conversations by name, FLOPS and L0 among them: {"mean": value}, with "low" and "high" where there
            is an interval; None where nothing was measured.
        validation: the record of the validation whose parameters the student has: step, measures, l0 and flops.
    """
    model = config.student.model
    is_on_a_hub = not ("://" in model or model.startswith(("/", "package:")))
    header = yaml.safe_dump(
        {
            **({"base_model": model} if is_on_a_hub else {}),
            "library_name": "sentence-transformers",
            "pipeline_tag": "feature-extraction",
            "tags": ["sparse-encoder", "splade", "conversational-search", "raydistill"],
        },
        sort_keys=False,
    )
    table = "\n".join(f"| {name} | {value} |" for name, value in _facts(config).items())
    return f"""---
{header}---

# {config.run}

A sparse conversational query encoder distilled by raydistill. It reads a whole conversation, newest turn first
(`question [SEP] previous answer [SEP] previous question ...`), and gives one sparse vector over its vocabulary, to be
matched with the vectors of the passage index it was trained for.

| | |
|---|---|
{table}

## Measures

{_measured(config, test, validation)}
"""


def _facts(config: DistillConfig) -> dict[str, str]:
    train, text = config.train, config.student.text
    sampling = train.sampling
    return {
        "starting point": f"`{_short(config.student.model)}`, {config.student.head} head" + _kept(config.student),
        "training conversations": "; ".join(map(_source, config.data.train)),
        "passages": f"{', '.join(map(_short, config.data.corpus))}; vectors: {_documents(config.index.documents)}",
        "teachers (rewrites)": f"{'; '.join(map(_teacher, config.teachers))}; scores combined by {train.combine}",
        **_scorers(config),
        "objective": f"`{train.objective}`",
        "sampling": f"{sampling.passages} passages a query: gold {sampling.gold}, top {sampling.top}, `{sampling.policy}`"
        + (f", {sampling.student_top} of the last round's student" if sampling.student_top else ""),
        "regularisation": _regularisation(train),
        "training": f"{train.epochs:g} epochs, batch {train.global_batch}, learning rate {train.learning_rate:g}, "
        f"{train.precision}, {_seeds(train)}{_rounds(config)}",
        "text": f"newest first, {text.max_tokens} tokens; of the history, {text.utterance_words} words of each question and "
        f"{text.answer_words} of each answer",
    }


def _scorers(config: DistillConfig) -> dict[str, str]:
    """What teaches beside rewrites, and what weighs otherwise than the rest; nothing where there is neither."""
    facts = {}
    if config.scorers:
        facts["teachers (scores)"] = "; ".join(
            f"{each.name} (`{_short(each.llm.model if isinstance(each, LlmScorerConfig) else each.encoder.model)}`, "
            f"{each.kind}, the {each.depth} best candidates)"
            for each in config.scorers
        )
    if config.train.teacher_weights:
        facts["weights of teachers"] = ", ".join(
            f"{name} {weight:g}" for name, weight in config.train.teacher_weights.items()
        )
    return facts


def _seeds(train: TrainConfig) -> str:
    if train.averaged_seeds == 1:
        return f"seed {train.seed}"
    return f"mean of the parameters of {train.averaged_seeds} students, seeds {train.seed} and following"


def _rounds(config: DistillConfig) -> str:
    if config.rounds == 1:
        return ""
    encoded = ", the student of the round before encodes the rewrites too" if config.score.student_encodes_rewrites else ""
    return f", {config.rounds} rounds of mining{encoded}"


def _kept(student: StudentConfig) -> str:
    return "" if student.top_terms is None else f"; the {student.top_terms} heaviest terms of a query are kept"


def _regularisation(train: TrainConfig) -> str:
    regularisation = train.regularisation
    if regularisation.target is None:
        return f"`{regularisation.terms}`"
    depths = " at every turn depth" if regularisation.per_depth else ""
    return f"`{regularisation.terms}`, driven to the target `{regularisation.target}`{depths}"


def _measured(
    config: DistillConfig,
    test: Mapping[str, Mapping[str, float]] | None,
    validation: Mapping[str, float] | None,
) -> str:
    blocks = []
    if test is not None:
        values = {name: _with_interval(value) for name, value in test.items()}
        blocks.append(
            _table(f"On the test conversations ({_source(config.data.test)}), with 95 % bootstrap intervals.", values)
        )
    if validation is not None:
        values = {
            {"flops": "FLOPS", "l0": "L0"}.get(name, name): f"{value:.4g}"
            for name, value in validation.items()
            if name != "step" and "_depth_" not in name
        }
        blocks.append(_table(f"On held-out training conversations, at step {validation['step']:g}.", values))
    if not blocks:
        return "None were taken when this card was written; the run's report holds those of its evaluation."
    explained = "FLOPS: expected number of terms that a query and a passage share; L0: terms of a query."
    return "\n\n".join([*blocks, explained])


def _with_interval(value: Mapping[str, float]) -> str:
    interval = f" [{value['low']:.4g}, {value['high']:.4g}]" if "low" in value else ""
    return f"{value['mean']:.4g}{interval}"


def _table(caption: str, values: Mapping[str, str]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"{caption}\n\n| measure | value |\n|---|---|\n{rows}"


def _source(source: ConversationSource | PassageSource) -> str:
    if isinstance(source, PassageSource):
        return f"{source.name or 'passages'} (conversations made of {source.sample} passages)"
    file = _short(source.conversations) + (f", split {source.split}" if source.split else "")
    return f"{source.name} ({file})" if source.name else file


def _teacher(teacher: TeacherConfig) -> str:
    if isinstance(teacher, RecordedTeacherConfig):
        return f"{teacher.name} (recorded)"
    return f"{teacher.name} (`{_short(teacher.model)}`, prompt {teacher.prompt})"


def _documents(documents: DocumentsConfig) -> str:
    if isinstance(documents, LexicalDocumentsConfig):
        return f"BM25 impacts (k1 {documents.k1:g}, b {documents.b:g})"
    learned = ", trained by this run" if documents.kind == "learned" else ""
    return f"`{_short(documents.model)}`{learned}"


def _short(place: str) -> str:
    """Return a hub id or package model as it is, and of a file or folder its name: the card travels, the place does not."""
    return PurePosixPath(place).name if "://" in place or place.startswith("/") else place
