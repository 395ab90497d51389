"""The teach stage on Ray: a teacher's rewrites of all queries as one artifact. What a rewrite is lives in `rewriting`.

A part is named by the range of queries it holds, so a resubmitted job finds finished parts whatever was changed in the
number of workers; a range cut differently is made anew, out of the generation cache.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from raydistill.actor_pool import count, map_shards
from raydistill.config import (
    WITHOUT_FILE,
    GeneratingTeacherConfig,
    RecordedTeacherConfig,
    TeacherConfig,
)
from raydistill.conversations.records import ConversationalQuery, Turn
from raydistill.errors import DataError, TeacherError
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.files import input_fingerprint
from raydistill.storage.parts import Part
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Failure
from raydistill.teachers.engines import check_prompts, engine_identity, open_rewriter
from raydistill.teachers.places import group_name, held_places
from raydistill.teachers.recorded import RecordedRewrites, known_nothing, recorded_rewrites
from raydistill.teachers.rewriting import (
    Rewrite,
    Rewriter,
    RewriteRequest,
    recorded_row,
    rewrite_table,
    row_counters,
)
from raydistill.teachers.spending import Decision, Decisions

logger = logging.getLogger("raydistill")

KIND = "rewrites"
_FORMAT_VERSION = 2
_MISSING = f"failed.{Failure.MISSING.value}"
_RECORDED_ROWS_PER_PART = 10_000
_ADVICE = {
    "transformers": "correct its model, dtype or budgets, or give its workers more memory",
    "vllm": "correct its model, dtype, engine_args or budgets",
    "openai": "correct its model or budgets, or look after its server",
}
"""By engine: what to do when no prompt at all was answered."""


def teach(
    teacher: TeacherConfig,
    queries: Sequence[ConversationalQuery],
    queries_fingerprint: str,
    root: str,
    decided_by: Mapping[str, str] | None = None,
    decide: Callable[[], Decisions] | None = None,
) -> Artifact:
    """Return the committed artifact of kind "rewrites" that holds one row a query, in the order of the queries.

    Parquet columns are those of `raydistill.teachers.rewriting.REWRITE_SCHEMA`; the manifest's metadata holds the
    teacher's settings and the counts (queries, failed, failed.{reason}, and for language models cached, retried, recovered,
    prompt_tokens, generated_tokens). Finished parts and cached generations of earlier tries are used.

    Args:
        queries: every query once. Prompts that show answers or facts show those of the queries.
        queries_fingerprint: of everything that decides the queries, and their own rewrites where the teacher reads those.
        root: run root URI.
        decided_by, decide: which turns are asked, and the fingerprints of what that goes by; None asks all of them.

    Raises:
        TeacherError: the model cannot be loaded, or not one rewrite came out.
        DataError: a malformed file of recorded rewrites, or a recorded teacher that knows none of the queries.
        ResourceError: the cluster cannot hold the workers.
    """
    artifact = rewrites_artifact(teacher, queries_fingerprint, root, decided_by)
    if artifact.find_manifest() is not None:
        return artifact
    decisions = decide() if decide is not None else None
    if isinstance(teacher, RecordedTeacherConfig):
        parts = _recorded_parts(teacher, queries, artifact)
        extra: dict[str, Any] = {"source": list(teacher.rewrites)}
    else:
        parts = _generated_parts(teacher, queries, artifact, decisions)
        extra = teacher.model_dump(mode="json", include={"model", "revision", "identity", "prompt"})
    if decisions is not None:
        extra["spend"] = decisions.counts()
        count(f"teachers[{teacher.name}]", {f"spend.{name}": value for name, value in extra["spend"].items()})
        logger.info("teacher %s: %s", teacher.name, _spending(decisions))
    counts = _summed([part.counters for part in parts])
    failed = counts["failed"] - counts.get("over_budget", 0)
    if queries and failed == counts["queries"] - counts.get("over_budget", 0) - counts.get("self_contained", 0) > 0:
        raise TeacherError(
            f"teacher {teacher.name} failed on all {len(queries)} queries ({_reasons(counts)}; first: "
            f"{_first_raw(artifact, parts[0])!r}); correct its prompt, model or budgets"
        )
    missing = counts.get(_MISSING, 0) - counts.get("over_budget", 0)
    if missing > 0:
        logger.info(
            "teacher %s: has no rewrite of %g of %g turns; nothing is learned of it there, and in an evaluation the last "
            "utterance stands in",
            teacher.name,
            missing,
            counts["queries"],
        )
    if failed > missing:
        reasons = _reasons({name: count for name, count in counts.items() if name != _MISSING})
        logger.warning(
            "teacher %s: %d of %d rewrites failed (%s); the last utterance stands in",
            teacher.name,
            failed - missing,
            counts["queries"],
            reasons,
        )
    ArtifactWriter(artifact).commit([part.name for part in parts], {"engine": teacher.engine, **extra, "counts": counts})
    return artifact


def rewrites_artifact(
    teacher: TeacherConfig, queries_fingerprint: str, root: str, decided_by: Mapping[str, str] | None = None
) -> Artifact:
    """Return the address of a teacher's rewrites, computed or not; reads its files or folder to know their content."""
    if isinstance(teacher, RecordedTeacherConfig):
        held = "".join(f" and {place}" for place in WITHOUT_FILE if place in teacher.rewrites)
        source = input_fingerprint([uri for uri in teacher.rewrites if uri not in WITHOUT_FILE]) + held
    else:
        check_prompts(teacher)
        source = engine_identity(teacher).key
    inputs = {"queries": queries_fingerprint, "teacher": source, **(decided_by or {})}
    return Artifact(root, KIND, teacher.name, fingerprint(KIND, _FORMAT_VERSION, teacher, inputs))


def _recorded_parts(
    teacher: RecordedTeacherConfig, queries: Sequence[ConversationalQuery], artifact: Artifact
) -> list[Part]:
    known = recorded_rewrites(teacher.rewrites, queries)
    if queries and not (known.raw or known.held):
        raise DataError(f"teacher {teacher.name}: {known_nothing(teacher.rewrites, queries)}")
    parts = []
    for start, stop in _ranges(len(queries), _RECORDED_ROWS_PER_PART):
        rows = [_recorded_row(query, known) for query in queries[start:stop]]
        parts.append(_put(artifact, start, stop, rows, row_counters(rows)))
    return parts


def _recorded_row(query: ConversationalQuery, known: RecordedRewrites) -> Rewrite:
    held = known.held.get(query.query_id)
    if held is not None:
        return Rewrite(query.query_id, held, None, held)
    return recorded_row(query.query_id, query.question, known.raw)


def _generated_parts(
    teacher: GeneratingTeacherConfig,
    queries: Sequence[ConversationalQuery],
    artifact: Artifact,
    decisions: Decisions | None,
) -> list[Part]:
    ranges = _ranges(len(queries), teacher.turns_per_task)
    finished = ArtifactWriter(artifact).finished()
    waiting = [each for each in ranges if _part_name(*each) not in finished]
    of = {} if decisions is None else decisions.of
    specs = [_spec(start, stop, queries[start:stop], teacher.history_turns, of) for start, stop in waiting]
    arguments = {
        "teacher": teacher.model_dump(mode="json"),
        "artifact": artifact.to_json(),
        "identity": engine_identity(teacher),
    }
    parts = {name: finished[name] for name in (_part_name(*each) for each in ranges) if name in finished}
    with track(f"teach {teacher.name}", len(queries), "turns") as advance:
        advance(sum(part.rows for part in parts.values()))
        with held_places(teacher, len(specs), artifact):
            for receipt in map_shards(specs, RewriteWorker, arguments, teacher.workers, f"teachers[{teacher.name}]"):
                part = Part.from_json(receipt)
                parts[part.name] = part
                advance(part.rows)
    return [parts[_part_name(*each)] for each in ranges]


class RewriteWorker:
    """One actor's share: rewrites ranges of queries and stores each as a part; loads the model at the first cache miss."""

    def __init__(self, teacher: Mapping[str, Any], artifact: Mapping[str, str], identity: EngineIdentity) -> None:
        self._teacher: GeneratingTeacherConfig = TypeAdapter(GeneratingTeacherConfig).validate_python(teacher)
        self._artifact = Artifact.from_json(artifact)
        self._identity = identity

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Rewrite the range and return its part. Raises TeacherError when nothing can be loaded or answered."""
        requests = _requests(spec)
        rows, counters = self._rewriter.rewrite(requests) if requests else ([], row_counters([]))
        if len(rows) > 1 and all(row.failure is not None and Failure(row.failure).is_of_engine for row in rows):
            # Stored, this would be taken for finished by every later try.
            raise TeacherError(
                f"teacher {self._teacher.name} could answer none of {len(rows)} prompts ({rows[0].raw}); "
                + _ADVICE[self._teacher.engine]
            )
        rows, counters = _with_unasked(rows, counters, spec.get("unasked", []))
        return _put(self._artifact, spec["start"], spec["stop"], rows, counters).to_json()

    @cached_property
    def _rewriter(self) -> Rewriter:
        # Not in the constructor: an error of a Ray actor's constructor does not reach the driver as a sentence.
        cache = GenerationCache(self._artifact.root, self._identity)
        return open_rewriter(self._teacher, cache, group_name(self._artifact))


def _spec(
    start: int,
    stop: int,
    queries: Sequence[ConversationalQuery],
    history_turns: int,
    decisions: Mapping[str, Decision] | None = None,
) -> dict[str, Any]:
    """Return a range of queries as JSON, every turn of its conversations written once however many histories show it."""
    of = decisions or {}
    unasked = [
        [place, query.query_id, query.question, of[query.query_id].value]
        for place, query in enumerate(queries)
        if of.get(query.query_id, Decision.ASK) is not Decision.ASK
    ]
    queries = [query for query in queries if of.get(query.query_id, Decision.ASK) is Decision.ASK]
    turns: list[list[str]] = []
    numbers: dict[Turn, int] = {}
    rows = []
    for query in queries:
        shown = query.history[max(0, len(query.history) - history_turns) :]
        for turn in shown:
            if turn not in numbers:
                numbers[turn] = len(turns)
                turns.append([turn.question, turn.answer])
        rows.append([query.query_id, query.question, [numbers[turn] for turn in shown], query.answer, list(query.facts)])
    return {"start": start, "stop": stop, "turns": turns, "queries": rows, "unasked": unasked}


def _with_unasked(
    rows: list[Rewrite], counters: Mapping[str, float], unasked: Sequence[Sequence[Any]]
) -> tuple[list[Rewrite], dict[str, float]]:
    """Return all rows of a range in order, with those that were not asked, and the counters of all."""
    if not unasked:
        return rows, dict(counters)
    waiting = iter(rows)
    told = {
        place: Rewrite(query_id, question, None if kind == Decision.SELF_CONTAINED.value else Failure.MISSING.value, "")
        for place, query_id, question, kind in unasked
    }
    whole = [told[place] if place in told else next(waiting) for place in range(len(rows) + len(told))]
    kinds = [kind for *_, kind in unasked]
    return whole, {**counters, **row_counters(whole), **{kind: kinds.count(kind) for kind in sorted(set(kinds))}}


def _spending(decisions: Decisions) -> str:
    counts = decisions.counts()
    saved = 1.0 - counts["estimated_tokens"] / max(1.0, counts["estimated_tokens_of_all"])
    price = f", about {counts['estimated_dollars']:.2f} dollars" if counts["estimated_dollars_of_all"] else ""
    return (
        f"{counts['ask']:g} turns are asked, {counts['self_contained']:g} are self-contained, {counts['over_budget']:g} "
        f"over the budget; about {saved:.0%} of the tokens are saved{price}"
    )


def _requests(spec: Mapping[str, Any]) -> list[RewriteRequest]:
    turns = [(question, answer) for question, answer in spec["turns"]]
    return [
        RewriteRequest(query_id, question, tuple(turns[n] for n in history), answer, tuple(facts))
        for query_id, question, history, answer, facts in spec["queries"]
    ]


def _put(artifact: Artifact, start: int, stop: int, rows: list[Rewrite], counters: Mapping[str, float]) -> Part:
    buffer = io.BytesIO()
    pq.write_table(rewrite_table(rows), buffer, compression="zstd")
    return ArtifactWriter(artifact).put_part(_part_name(start, stop), buffer.getvalue(), ".parquet", len(rows), counters)


def _ranges(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _part_name(start: int, stop: int) -> str:
    return f"queries-{start:09d}-{stop:09d}"


def _summed(counters: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(["queries", "failed", *(name for each in counters for name in each)])
    return {name: sum(each.get(name, 0) for each in counters) for name in names}


def _reasons(counts: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.removeprefix('failed.')} {count:g}" for name, count in counts.items() if name.startswith("failed.")
    )


def _first_raw(artifact: Artifact, part: Part) -> str:
    return str(pq.read_table(artifact.fetch(part), columns=["raw"])["raw"][0].as_py())[:200]
