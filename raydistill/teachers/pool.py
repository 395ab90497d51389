"""The teach stage on Ray: a teacher's rewrites of a set of queries as one artifact. What a rewrite is lives in `rewriting`.

A teacher has one pool of actors for all of its sets, so its model is loaded once, and the pools of several teachers work at
the same time where the cluster has room for all of them (see `side_by_side`).

A part is named by the range of queries it holds, so a resubmitted job finds finished parts whatever was changed in the
number of workers; a range cut differently is made anew, out of the generation cache.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Event
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
from raydistill.conversations.records import ConversationalQuery
from raydistill.errors import DataError, TeacherError
from raydistill.progress import track
from raydistill.side_by_side import Pool, run_pools, until
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.files import input_fingerprint
from raydistill.storage.parts import Part
from raydistill.teachers.cache import EngineIdentity, GenerationCache
from raydistill.teachers.engine import Failure
from raydistill.teachers.engines import check_prompts, engine_identity, open_rewriter
from raydistill.teachers.places import group_name, held_places, pool_of
from raydistill.teachers.recorded import RecordedRewrites, known_nothing, recorded_rewrites
from raydistill.teachers.rewriting import (
    Rewrite,
    Rewriter,
    recorded_row,
    rewrite_table,
    row_counters,
)
from raydistill.teachers.spending import Decisions
from raydistill.teachers.tasks import requests_of, task, with_unasked

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


@dataclass(frozen=True)
class Assignment:
    """What a teacher is asked for: the rewrites of a set of queries.

    Attributes:
        teacher: who is asked.
        queries: every query once. Prompts that show answers or facts show those of the queries.
        queries_fingerprint: of everything that decides the queries, and their own rewrites where the teacher reads those.
        decided_by, decide: which turns are asked, and the fingerprints of what that goes by; None asks all of them.
    """

    teacher: TeacherConfig
    queries: Sequence[ConversationalQuery]
    queries_fingerprint: str
    decided_by: Mapping[str, str] | None = None
    decide: Callable[[], Decisions] | None = None


def teach(
    teacher: TeacherConfig,
    queries: Sequence[ConversationalQuery],
    queries_fingerprint: str,
    root: str,
    decided_by: Mapping[str, str] | None = None,
    decide: Callable[[], Decisions] | None = None,
) -> Artifact:
    """Return the rewrites of one assignment; see `Assignment` and `teach_all`."""
    return teach_all([Assignment(teacher, queries, queries_fingerprint, decided_by, decide)], root)[0]


def teach_all(assignments: Sequence[Assignment], root: str) -> list[Artifact]:
    """Return for each assignment the committed artifact of kind "rewrites": one row a query, in the order of the queries.

    Parquet columns are those of `raydistill.teachers.rewriting.REWRITE_SCHEMA`; the manifest's metadata holds the
    teacher's settings and the counts (queries, failed, failed.{reason}, and for language models cached, retried, recovered,
    prompt_tokens, generated_tokens). Finished parts and cached generations of earlier tries are used.

    Args:
        assignments: teachers of one name have the same settings but for their budget.
        root: run root URI.

    Raises:
        TeacherError: a model cannot be loaded, or not one rewrite came out.
        DataError: a malformed file of recorded rewrites, or a recorded teacher that knows none of the queries.
        ResourceError: the cluster cannot hold the workers of one teacher.
    """
    artifacts = [rewrites_artifact(each.teacher, each.queries_fingerprint, root, each.decided_by) for each in assignments]
    by_address = {artifact.uri: (artifact, each) for artifact, each in zip(artifacts, assignments, strict=True)}
    generated: dict[str, list[_Draft]] = {}
    for artifact, each in by_address.values():
        if artifact.find_manifest() is not None:
            continue
        draft = _Draft(artifact, each.teacher, each.queries, each.decide() if each.decide is not None else None)
        if isinstance(each.teacher, RecordedTeacherConfig):
            _record(draft, each.teacher)
            continue
        draft.read_finished()
        if draft.missing:
            generated.setdefault(each.teacher.name, []).append(draft)
        else:
            draft.commit()
    run_pools([_pool(drafts) for drafts in generated.values()])
    return artifacts


class _Draft:
    """An artifact on its way: its ranges of queries, and the parts that are there."""

    def __init__(
        self,
        artifact: Artifact,
        teacher: TeacherConfig,
        queries: Sequence[ConversationalQuery],
        decisions: Decisions | None,
    ) -> None:
        self.artifact, self.teacher, self.queries, self.decisions = artifact, teacher, queries, decisions
        size = _RECORDED_ROWS_PER_PART if isinstance(teacher, RecordedTeacherConfig) else teacher.turns_per_task
        self.ranges = [(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
        self.parts: dict[str, Part] = {}

    def read_finished(self) -> None:
        """Take the parts of earlier tries."""
        finished = ArtifactWriter(self.artifact).finished()
        names = (_part_name(*each) for each in self.ranges)
        self.parts = {name: finished[name] for name in names if name in finished}

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The ranges whose parts are not there."""
        return [each for each in self.ranges if _part_name(*each) not in self.parts]

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Yield the tasks of the missing parts."""
        assert not isinstance(self.teacher, RecordedTeacherConfig)
        of = {} if self.decisions is None else self.decisions.of
        for start, stop in self.missing:
            yield task(self.artifact, start, stop, self.queries[start:stop], self.teacher.history_turns, of)

    def commit(self) -> None:
        """Commit the artifact of all parts, and log what was spent and what failed.

        Raises TeacherError when every rewrite failed.
        """
        teacher, queries, decisions = self.teacher, self.queries, self.decisions
        parts = [self.parts[_part_name(*each)] for each in self.ranges]
        if isinstance(teacher, RecordedTeacherConfig):
            told: dict[str, Any] = {"engine": teacher.engine, "source": list(teacher.rewrites)}
        else:
            settings = teacher.model_dump(mode="json", include={"model", "revision", "identity", "prompt"})
            told = {"engine": teacher.engine, **settings}
        if decisions is not None:
            told["spend"] = decisions.counts()
            count(f"teachers[{teacher.name}]", {f"spend.{name}": value for name, value in told["spend"].items()})
            logger.info("teacher %s: %s", teacher.name, _spending(decisions))
        counts = _summed([part.counters for part in parts])
        failed = counts["failed"] - counts.get("over_budget", 0)
        if queries and failed == counts["queries"] - counts.get("over_budget", 0) - counts.get("self_contained", 0) > 0:
            raise TeacherError(
                f"teacher {teacher.name} failed on all {len(queries)} queries ({_reasons(counts)}; first: "
                f"{_first_raw(self.artifact, parts[0])!r}); correct its prompt, model or budgets"
            )
        missing = counts.get(_MISSING, 0) - counts.get("over_budget", 0)
        if missing > 0:
            logger.info(
                "teacher %s: has no rewrite of %g of %g turns; nothing is learned of it there, and in an evaluation the "
                "last utterance stands in",
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
        ArtifactWriter(self.artifact).commit([part.name for part in parts], {**told, "counts": counts})


def _record(draft: _Draft, teacher: RecordedTeacherConfig) -> None:
    """Write recorded rewrites on the driver."""
    queries = draft.queries
    known = recorded_rewrites(teacher.rewrites, queries)
    if queries and not (known.raw or known.held):
        raise DataError(f"teacher {teacher.name}: {known_nothing(teacher.rewrites, queries)}")
    for start, stop in draft.ranges:
        rows = [_recorded_row(query, known) for query in queries[start:stop]]
        part = _put(draft.artifact, start, stop, rows, row_counters(rows))
        draft.parts[part.name] = part
    draft.commit()


def _recorded_row(query: ConversationalQuery, known: RecordedRewrites) -> Rewrite:
    held = known.held.get(query.query_id)
    if held is not None:
        return Rewrite(query.query_id, held, None, held)
    return recorded_row(query.query_id, query.question, known.raw)


def _pool(drafts: Sequence[_Draft]) -> Pool:
    """Return the work of one teacher on all of its sets."""
    teacher = drafts[0].teacher
    assert not isinstance(teacher, RecordedTeacherConfig)
    missing = sum(len(draft.missing) for draft in drafts)
    workers = teacher.workers.model_copy(update={"actors": min(teacher.workers.actors, missing)})
    return pool_of(f"teacher {teacher.name}", teacher, workers, lambda stop: _generate(teacher, drafts, stop))


def _generate(teacher: GeneratingTeacherConfig, drafts: Sequence[_Draft], stop: Event) -> None:
    """Have the missing parts written by actors, and commit each draft as soon as it is complete."""
    artifact = drafts[0].artifact
    of = {draft.artifact.fingerprint: draft for draft in drafts}
    tasks = [each for draft in drafts for each in draft.tasks()]
    arguments = {
        "teacher": teacher.model_dump(mode="json"),
        "root": artifact.root,
        "group": group_name(artifact),
        "identity": engine_identity(teacher),
    }
    with track(f"teach {teacher.name}", sum(len(draft.queries) for draft in drafts), "turns") as advance:
        advance(sum(part.rows for draft in drafts for part in draft.parts.values()))
        stage = f"teachers[{teacher.name}]"
        with held_places(teacher, len(tasks), artifact):
            for receipt in until(stop, map_shards(tasks, RewriteWorker, arguments, teacher.workers, stage)):
                part, draft = Part.from_json(receipt), of[receipt["of"]]
                draft.parts[part.name] = part
                advance(part.rows)
                if not draft.missing:
                    draft.commit()


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


class RewriteWorker:
    """One actor's share: rewrites ranges of queries and stores each as a part; loads the model at the first cache miss."""

    def __init__(self, teacher: Mapping[str, Any], root: str, group: str, identity: EngineIdentity) -> None:
        """Load nothing yet.

        Args:
            teacher: its configuration as JSON.
            root: run root URI, where the generation cache is.
            group: what the names of placement groups begin with.
            identity: of the engine.
        """
        self._teacher: GeneratingTeacherConfig = TypeAdapter(GeneratingTeacherConfig).validate_python(teacher)
        self._root, self._group, self._identity = root, group, identity

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Rewrite the range and return its part, and `of` which artifact (its fingerprint) it is.

        Raises TeacherError when nothing can be loaded or answered.
        """
        artifact = Artifact.from_json(spec["artifact"])
        requests = requests_of(spec)
        rows, counters = self._rewriter.rewrite(requests) if requests else ([], row_counters([]))
        if len(rows) > 1 and all(row.failure is not None and Failure(row.failure).is_of_engine for row in rows):
            # Stored, this would be taken for finished by every later try.
            raise TeacherError(
                f"teacher {self._teacher.name} could answer none of {len(rows)} prompts ({rows[0].raw}); "
                + _ADVICE[self._teacher.engine]
            )
        rows, counters = with_unasked(rows, counters, spec.get("unasked", []))
        part = _put(artifact, spec["start"], spec["stop"], rows, counters)
        return {**part.to_json(), "of": artifact.fingerprint}

    @cached_property
    def _rewriter(self) -> Rewriter:
        # Not in the constructor: an error of a Ray actor's constructor does not reach the driver as a sentence.
        return open_rewriter(self._teacher, GenerationCache(self._root, self._identity), self._group)


def _spending(decisions: Decisions) -> str:
    counts = decisions.counts()
    saved = 1.0 - counts["estimated_tokens"] / max(1.0, counts["estimated_tokens_of_all"])
    price = f", about {counts['estimated_dollars']:.2f} dollars" if counts["estimated_dollars_of_all"] else ""
    return (
        f"{counts['ask']:g} turns are asked, {counts['self_contained']:g} are self-contained, {counts['over_budget']:g} "
        f"over the budget; about {saved:.0%} of the tokens are saved{price}"
    )


def _put(artifact: Artifact, start: int, stop: int, rows: list[Rewrite], counters: Mapping[str, float]) -> Part:
    buffer = io.BytesIO()
    pq.write_table(rewrite_table(rows), buffer, compression="zstd")
    return ArtifactWriter(artifact).put_part(_part_name(start, stop), buffer.getvalue(), ".parquet", len(rows), counters)


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
