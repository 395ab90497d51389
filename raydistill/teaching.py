"""Which rewrites a run has: every teacher on every set of turns, those with a budget after those they are weighed by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raydistill.config import DistillConfig, GeneratingTeacherConfig, RecordedTeacherConfig, SpendConfig, TeacherConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.conversations.text import history_pairs
from raydistill.encoders.student_source import student_identity
from raydistill.errors import DataError
from raydistill.inputs import RunInputs
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.openai_protocol import estimated_tokens
from raydistill.teachers.pool import Assignment, rewrites_artifact, teach_all
from raydistill.teachers.prompts import find_template, render_prompt
from raydistill.teachers.rewriting import rewrite_texts
from raydistill.teachers.spending import Decisions, decide, disagreements

Rewrites = dict[str, dict[str, Artifact]]
"""Set name -> name of each teacher that covers the set -> its rewrites."""


def planned_rewrites(config: DistillConfig, inputs: RunInputs) -> Rewrites:
    """Return the addresses of all rewrites, computed or not."""
    made: Rewrites = {}
    for name in inputs.taught():
        own: dict[str, Artifact] = {}
        for teacher in _in_order(inputs.teachers_of(name)):
            asked = _for_set(teacher, name)
            turns = inputs.turns_fingerprint(name, teacher)
            own[teacher.name] = rewrites_artifact(asked, turns, config.root, _decided_by(asked, own))
        made[name] = {teacher.name: own[teacher.name] for teacher in inputs.teachers_of(name)}
    return made


def teach_every_set(config: DistillConfig, inputs: RunInputs) -> Rewrites:
    """Rewrite every turn of both sets with every teacher; see `planned_rewrites`.

    Teachers without a budget come first, together where the cluster has room; by what they wrote it is decided what the
    others are asked.
    """
    made: Rewrites = {name: {} for name in inputs.taught()}
    for has_budget in (False, True):
        places: list[tuple[str, str]] = []
        asked: list[Assignment] = []
        for teacher in config.teachers:
            for name in inputs.taught():
                if (_spend(teacher) is not None) == has_budget and teacher in inputs.teachers_of(name):
                    places.append((name, teacher.name))
                    asked.append(_assignment(config, inputs, teacher, name, made[name]))
        for (name, teacher_name), artifact in zip(places, teach_all(asked, config.root), strict=True):
            made[name][teacher_name] = artifact
    return {name: {each.name: own[each.name] for each in inputs.teachers_of(name)} for name, own in made.items()}


def _assignment(
    config: DistillConfig, inputs: RunInputs, teacher: TeacherConfig, name: str, before: Mapping[str, Artifact]
) -> Assignment:
    """Return what a teacher is asked about a set, given the rewrites of those who were asked before."""
    asked, queries = _for_set(teacher, name), inputs.asked_of(name, teacher)
    turns = inputs.turns_fingerprint(name, teacher)
    chooses = _chooser(config, asked, queries, turns, before)
    return Assignment(asked, queries, turns, _decided_by(asked, before), chooses)


def teaching_counts(rewrites: Rewrites) -> list[dict[str, Any]]:
    """Return what the teachers did, one row a teacher and set: {teacher, set, engine, and every count of the rewrites: turns
    (queries), failures by kind, cached, retried, tokens, and with a budget its decisions and estimates}."""
    rows = []
    for name, by_teacher in rewrites.items():
        for teacher, artifact in by_teacher.items():
            metadata = artifact.manifest().metadata
            counts = {**metadata["counts"], **metadata.get("spend", {})}
            rows.append({"teacher": teacher, "set": name, "engine": metadata["engine"], **counts})
    return rows


def _in_order(teachers: Sequence[TeacherConfig]) -> list[TeacherConfig]:
    return sorted(teachers, key=lambda teacher: _spend(teacher) is not None)


def _spend(teacher: TeacherConfig) -> SpendConfig | None:
    return None if isinstance(teacher, RecordedTeacherConfig) else teacher.spend


def _for_set(teacher: TeacherConfig, name: str) -> TeacherConfig:
    """Return a teacher as it is asked about a set: budgets are for training turns only."""
    return teacher if name == "train" or _spend(teacher) is None else teacher.model_copy(update={"spend": None})


def _decided_by(teacher: TeacherConfig, rewrites: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the fingerprints of what decides which turns are asked."""
    spend = _spend(teacher)
    if spend is None:
        return {}
    made = {f"among/{name}": rewrites[name].fingerprint for name in spend.among if name in rewrites}
    return {**made, **({"student": student_identity(spend.student)} if spend.student else {})}


def _chooser(
    config: DistillConfig,
    teacher: TeacherConfig,
    queries: Sequence[ConversationalQuery],
    turns: str,
    rewrites: Mapping[str, Artifact],
) -> Callable[[], Decisions] | None:
    spend = _spend(teacher)
    if spend is None or isinstance(teacher, RecordedTeacherConfig):
        return None

    def choose() -> Decisions:
        told = [rewrite_texts(rewrites[name]) for name in spend.among if name in rewrites]
        if spend.order == "disagreement" and len(told) < 2:
            raise DataError(
                f"teachers.{teacher.name}.spend.among: {len(told)} of {', '.join(spend.among)} have rewrites of training "
                "turns, and it takes two to disagree; name others"
            )
        agreement = None
        if spend.student is not None:
            # Imported here: it needs torch.
            from raydistill.scoring.context import context_agreement

            agreement = context_agreement(queries, turns, spend.student, config.root, config.score.workers)
        return decide(queries, spend, lambda query: _estimate(teacher, query), agreement, disagreements(told))

    return choose


def _estimate(teacher: GeneratingTeacherConfig, query: ConversationalQuery) -> tuple[int, int]:
    """Return about how many tokens a turn's prompts and answers have, all samples together."""
    history = history_pairs(query)
    shown = [(asked, told) for asked, told in history[max(0, len(history) - teacher.history_turns) :]]
    prompt = render_prompt(
        find_template(teacher.prompt),
        query.question,
        shown,
        teacher.max_prompt_tokens,
        estimated_tokens,
        answer=query.answer,
        facts=query.facts,
    )
    return estimated_tokens(prompt) * teacher.samples, teacher.max_new_tokens * teacher.samples
