"""Scoring on Ray: models read the best candidates of every turn, and their scores join those of the teachers.

Of each scorer there is one artifact of kind "judgements", made of the mined candidates alone, so that another scorer costs
nothing anew; then `with_judgements` writes the candidates again with one more list of scores a scorer (null weights: it has
no rewrite). Everything after that reads them as it reads mined ones. A passage that a scorer did not read has no score of
it (NaN), and none is made up; see `teachers.combine` for what becomes of it.

Judgements, Parquet, one part a range of a candidates part: query_id string, passages list<int64> (ascending), scores
list<float32> (log-odds of fitting, higher is better; NaN where the model gave none). Memory of a worker: the index mapped,
the texts of turns_per_task x depth passages, the model; what a language model's engine was asked before lies on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from threading import Event
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raydistill.actor_pool import map_shards
from raydistill.config import LlmScorerConfig, PoolConfig, QueryText, ScorerConfig, WorkerConfig
from raydistill.errors import DataError, TeacherError
from raydistill.index.candidates import CANDIDATES, candidate_scores, parquet_bytes
from raydistill.index.publish import IndexVersion
from raydistill.index.segment_group import Holding, SegmentGroup, corpora_of
from raydistill.progress import track
from raydistill.reranking.order import query_text
from raydistill.scoring.calibration import Calibration, fit, log_loss
from raydistill.scoring.judges import Candidates, Judge, Tally
from raydistill.scoring.opening import open_judge, scorer_identity
from raydistill.side_by_side import Pool, run_pools, until
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint
from raydistill.storage.parts import summed_counters
from raydistill.teachers.combine import Combiner
from raydistill.teachers.engine import Failure
from raydistill.teachers.places import group_name, held_places, pool_of

KIND = "judgements"
_FORMAT_VERSION = 1
_SCHEMA = pa.schema([("query_id", pa.string()), ("passages", pa.list_(pa.int64())), ("scores", pa.list_(pa.float32()))])


def scored_artifact(scorers: Sequence[ScorerConfig], candidates: Artifact, rewrites: Mapping[str, Artifact]) -> Artifact:
    """Return the address of what `score_candidates` makes, computed or not; the candidates themselves without scorers."""
    if not scorers:
        return candidates
    made = {scorer.name: judgements_artifact(scorer, candidates, rewrites).fingerprint for scorer in scorers}
    inputs = {"candidates": candidates.fingerprint, **{f"judgements/{name}": each for name, each in made.items()}}
    name = fingerprint("scored-candidates", _FORMAT_VERSION, list(made), inputs)
    return Artifact(candidates.root, candidates.kind, candidates.name, name)


def judgements_artifact(scorer: ScorerConfig, candidates: Artifact, rewrites: Mapping[str, Artifact]) -> Artifact:
    """Return the address of a scorer's judgements, computed or not. Raises ConfigError when its model is not here."""
    inputs = {"candidates": candidates.fingerprint, "model": scorer_identity(scorer)}
    if scorer.query in rewrites:
        inputs["rewrites"] = rewrites[scorer.query].fingerprint
    return Artifact(candidates.root, KIND, scorer.name, fingerprint(KIND, _FORMAT_VERSION, scorer, inputs))


def score_candidates(
    scorers: Sequence[ScorerConfig],
    candidates: Artifact,
    rewrites: Mapping[str, Artifact],
    index: IndexVersion,
    workers: WorkerConfig,
) -> Artifact:
    """Return the candidates with every scorer's scores beside the teachers'.

    Scorers work at the same time where the cluster has room for all of them (see `side_by_side`).

    Args:
        scorers: in the order of their scores.
        candidates: what mining made.
        rewrites: teacher -> its rewrites of the same turns.
        index: what the candidates were mined from; its corpus has the texts.
        workers: of the joining.

    Raises:
        DataError: the corpus' texts are not there, or a scorer reads a teacher that has no rewrites of these turns.
        TeacherError: a model cannot go on, or gave not one score.
        ResourceError: the cluster cannot hold a scorer's workers.
    """
    for scorer in scorers:
        if scorer.query not in (*rewrites, *get_args(QueryText)):
            raise DataError(
                f"scorers.{scorer.name}.query is the teacher {scorer.query!r}, which has no rewrites of these turns; "
                f"add them to the teacher, or let the scorer read {', '.join(get_args(QueryText))}"
            )
    target = scored_artifact(scorers, candidates, rewrites)
    if target.find_manifest() is not None:
        return target
    made = {scorer.name: judgements_artifact(scorer, candidates, rewrites) for scorer in scorers}
    missing = [scorer for scorer in scorers if made[scorer.name].find_manifest() is None]
    run_pools([_pool(scorer, made[scorer.name], candidates, rewrites.get(scorer.query), index) for scorer in missing])
    return _with_judgements(target, candidates, made, workers)


def scoring_counts(scorers: Sequence[ScorerConfig], candidates: Artifact) -> list[dict[str, Any]]:
    """Return what the scorers did for the scored candidates, one row a scorer: {scorer, kind, and every count: turns,
    passages, without_text, scored, prompts, cached, prompt_tokens, failures by kind}."""
    counters = candidates.manifest().metadata["counters"]
    rows = []
    for scorer in scorers:
        ending = f".{scorer.name}"
        own = {name.removesuffix(ending): count for name, count in counters.items() if name.endswith(ending)}
        rows.append({"scorer": scorer.name, "kind": scorer.kind, **own})
    return rows


def _pool(
    scorer: ScorerConfig, artifact: Artifact, candidates: Artifact, rewrites: Artifact | None, index: IndexVersion
) -> Pool:
    llm = scorer.llm if isinstance(scorer, LlmScorerConfig) else None
    run = partial(_judge, scorer, artifact, candidates, rewrites, index)
    return pool_of(f"scorer {scorer.name}", llm, scorer.workers, run)


def _judge(
    scorer: ScorerConfig,
    artifact: Artifact,
    candidates: Artifact,
    rewrites: Artifact | None,
    index: IndexVersion,
    stop: Event,
) -> None:
    """Have the missing parts of a scorer's judgements made by actors, and commit the artifact."""
    writer = ArtifactWriter(artifact)
    finished = writer.finished()
    specs: list[dict[str, Any]] = [
        {"name": name, "part": part.to_json(), "start": start, "rows": rows}
        for part in candidates.manifest().parts
        for start, rows, name in _ranges(part, scorer.turns_per_task)
    ]
    missing = [spec for spec in specs if spec["name"] not in finished]
    arguments = {
        "scorer": scorer.model_dump(mode="json"),
        "writer": writer,
        "candidates": candidates,
        "rewrites": rewrites,
        "index": index,
    }
    done = {name: part for name, part in finished.items() if name in {spec["name"] for spec in specs}}
    llm = scorer.llm if isinstance(scorer, LlmScorerConfig) else None
    with (
        track(f"score {scorer.name}", sum(spec["rows"] for spec in specs), "turns") as advance,
        held_places(llm, len(missing), artifact),
    ):
        advance(sum(part.rows for part in done.values()))
        stage = f"scorers[{scorer.name}]"
        for receipt in until(stop, map_shards(missing, _Scorer, arguments, scorer.workers, stage)):
            part = Part.from_json(receipt)
            done[part.name] = part
            advance(part.rows)
    if len(done) < len(specs):
        return
    parts = [done[spec["name"]] for spec in specs]
    counters = summed_counters(parts)
    if counters.get("passages", 0) and not counters.get("scored", 0):
        reasons = ", ".join(f"{name.removeprefix('failed.')} {count:g}" for name, count in counters.items() if "." in name)
        raise TeacherError(
            f"scorer {scorer.name} gave no score for any of {counters['passages']:g} passages ({reasons or 'no answer'}); "
            "correct its model, prompt, options or budget"
        )
    metadata: dict[str, Any] = {"scorer": scorer.model_dump(mode="json"), "counters": counters}
    if scorer.calibrate:
        metadata["calibration"] = _calibrated(scorer, artifact, parts, candidates)
    writer.commit([part.name for part in parts], metadata)


def _ranges(part: Part, size: int) -> list[tuple[int, int, str]]:
    """Return the first row, the number of rows and the name of each range of a part."""
    return [
        (start, min(size, part.rows - start), f"{part.name}-{start:06d}-{min(size, part.rows - start):06d}")
        for start in range(0, part.rows, size)
    ]


class _Scorer:
    """Scores ranges of turns; loads the model at the first of them."""

    def __init__(
        self,
        scorer: Mapping[str, Any],
        writer: ArtifactWriter,
        candidates: Artifact,
        rewrites: Artifact | None,
        index: IndexVersion,
    ) -> None:
        self._scorer: ScorerConfig = TypeAdapter(ScorerConfig).validate_python(scorer)
        corpora = corpora_of(index)
        if not corpora:
            raise DataError(
                f"the corpus of {index.uri} is not there, so there is no text that scorer {self._scorer.name} could read; "
                "run the index stage again"
            )
        self._writer, self._candidates, self._rewrites = writer, candidates, rewrites
        everything = tuple(range(len(index.segments)))
        self._holding = Holding(index.root, index.name, index.version, index.fingerprint, everything, corpora)
        self._passages = SegmentGroup(threads=1, versions=1)

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        table = pq.read_table(self._candidates.fetch(Part.from_json(spec["part"]))).slice(spec["start"], spec["rows"])
        wanted = [_chosen(table, row, self._scorer.depth) for row in range(len(table))]
        chosen, texts = zip(*(self._with_texts(passages) for passages in wanted), strict=True)
        turns = [Candidates(query, own) for query, own in zip(self._queries(table), texts, strict=True)]
        tally = Tally()
        found = self._judge.judge(turns, tally)
        rows = [
            {"query_id": query_id, **_ascending(passages, scores)}
            for query_id, passages, scores in zip(table.column("query_id").to_pylist(), chosen, found, strict=True)
        ]
        counters = {
            "turns": len(rows),
            "passages": sum(map(len, chosen)),
            "without_text": sum(map(len, wanted)) - sum(map(len, chosen)),
            "scored": int(sum(np.count_nonzero(~np.isnan(scores)) for scores in found)),
            **tally.counters(),
        }
        if tally.failed and not counters["scored"] and all(Failure(kind).is_of_engine for kind in tally.failed):
            # Stored, this would be taken for finished by every later try.
            raise TeacherError(
                f"scorer {self._scorer.name} could answer none of {tally.prompts} prompts ({', '.join(tally.failed)}); "
                "correct its model or budgets, or look after its server"
            )
        content = parquet_bytes(pa.Table.from_pylist(rows, schema=_SCHEMA))
        return self._writer.put_part(spec["name"], content, ".parquet", rows=len(rows), counters=counters).to_json()

    @cached_property
    def _judge(self) -> Judge:
        artifact = self._writer.artifact
        return open_judge(self._scorer, artifact.root, group_name(artifact))

    def _with_texts(self, passages: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
        """Return the passages that have a text, and the texts; one that is in no corpus any more has none."""
        texts = [hit.text for hit in self._passages.hits(self._holding, passages)]
        kept = np.array([text is not None for text in texts], dtype=bool)
        return passages[kept], [text for text in texts if text is not None]

    def _queries(self, table: pa.Table) -> list[str]:
        questions = table.column("question").to_pylist()
        if self._rewrites is not None:
            known = self._rewritten(set(table.column("query_id").to_pylist()))
            return [
                known.get(query_id, question)
                for query_id, question in zip(table.column("query_id").to_pylist(), questions, strict=True)
            ]
        form = self._scorer.query
        return [
            query_text(question, [(turn["question"], turn["answer"]) for turn in history], form)  # type: ignore[arg-type]
            for question, history in zip(questions, table.column("history").to_pylist(), strict=True)
        ]

    def _rewritten(self, wanted: set[str]) -> dict[str, str]:
        """Return query id -> the teacher's rewrite; a turn that it has none of is read as it was asked."""
        assert self._rewrites is not None
        texts: dict[str, str] = {}
        for part in self._rewrites.manifest().parts:
            found = pq.read_table(self._rewrites.fetch(part), columns=["query_id", "text"]).to_pydict()
            texts.update((one, text) for one, text in zip(found["query_id"], found["text"], strict=True) if one in wanted)
        return texts


def _chosen(table: pa.Table, row: int, depth: int) -> NDArray[np.int64]:
    """Return the candidates of a turn that are scored, best first by the teachers' mean: the `depth` best, and gold ones."""
    passages, scores = candidate_scores(table, row)
    mean = Combiner()(scores)
    order = np.argsort(-np.where(np.isnan(mean), -np.inf, mean), kind="stable")
    gold = np.isin(passages, table.column("gold")[row].as_py())
    return passages[np.array([place for rank, place in enumerate(order) if rank < depth or gold[place]], dtype=np.int64)]


def _ascending(passages: NDArray[np.int64], scores: NDArray[np.float64]) -> dict[str, Any]:
    order = np.argsort(passages)
    return {"passages": passages[order].tolist(), "scores": scores[order].astype(np.float32).tolist()}


def _calibrated(scorer: ScorerConfig, artifact: Artifact, parts: Sequence[Part], candidates: Artifact) -> dict[str, float]:
    """Return Platt's scaling of the scores by the gold passages, and the loss in nats before and after it.

    Turns without a gold passage tell nothing. Raises DataError when no turn has one.
    """
    gold: dict[str, set[int]] = {}
    for part in candidates.manifest().parts:
        table = pq.read_table(candidates.fetch(part), columns=["query_id", "gold"]).to_pydict()
        gold.update((query_id, set(own)) for query_id, own in zip(table["query_id"], table["gold"], strict=True) if own)
    scores: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.bool_]] = []
    for part in parts:
        for row in pq.read_table(artifact.fetch(part)).to_pylist():
            if row["query_id"] in gold:
                scores.append(np.asarray(row["scores"], dtype=np.float64))
                labels.append(np.isin(row["passages"], list(gold[row["query_id"]])))
    try:
        given, relevant = np.concatenate([np.zeros(0), *scores]), np.concatenate([np.zeros(0, dtype=bool), *labels])
        found = fit(given, relevant)
    except ValueError as error:
        raise DataError(
            f"scorers.{scorer.name}.calibrate: {error}; add qrels to a source of data.train, or set calibrate: false"
        ) from error
    return {
        "slope": found.slope,
        "intercept": found.intercept,
        "log_loss_before": log_loss(given, relevant),
        "log_loss_after": log_loss(found.log_odds(given), relevant),
        "turns": len(scores),
    }


def _with_judgements(
    target: Artifact, candidates: Artifact, judgements: Mapping[str, Artifact], workers: WorkerConfig
) -> Artifact:
    writer = ArtifactWriter(target)
    finished = writer.finished()
    parts = candidates.manifest().parts
    specs = [part.to_json() for part in parts if part.name not in finished]
    arguments = {"writer": writer, "candidates": candidates, "judgements": dict(judgements)}
    pool = PoolConfig(actors=workers.actors, cpus=workers.cpus)
    for _ in map_shards(specs, _Joiner, arguments, pool, "score"):
        pass
    metadata = candidates.manifest().metadata
    counters = dict(metadata["counters"])
    for name, artifact in judgements.items():
        counters |= {f"{key}.{name}": count for key, count in artifact.manifest().metadata["counters"].items()}
    teachers = [*metadata["teachers"], *judgements]
    writer.commit([part.name for part in parts], {**metadata, "teachers": teachers, "counters": counters})
    return target


class _Joiner:
    """Writes a part of the candidates again with the scorers' scores."""

    def __init__(self, writer: ArtifactWriter, candidates: Artifact, judgements: Mapping[str, Artifact]) -> None:
        self._writer, self._candidates = writer, candidates
        self._judgements = [(artifact, artifact.manifest()) for artifact in judgements.values()]

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        part = Part.from_json(spec)
        table = pq.read_table(self._candidates.fetch(part))
        columns = {name: table.column(name).to_pylist() for name in ("scores", "rewrite_terms", "rewrite_weights")}
        passages = [np.asarray(own.values.to_numpy()) for own in table.column("passages")]
        for artifact, manifest in self._judgements:
            given = manifest.metadata.get("calibration")
            calibration = Calibration(given["slope"], given["intercept"]) if given else Calibration(1.0, 0.0)
            row = 0
            for judged in (each for each in manifest.parts if each.name.startswith(f"{part.name}-")):
                for one in pq.read_table(artifact.fetch(judged)).to_pylist():
                    own = np.full(len(passages[row]), np.nan)
                    places = np.searchsorted(passages[row], one["passages"])
                    own[places] = calibration.log_odds(np.asarray(one["scores"], dtype=np.float64))
                    columns["scores"][row].append(None if np.isnan(own).all() else own.tolist())
                    columns["rewrite_terms"][row].append(None)
                    columns["rewrite_weights"][row].append(None)
                    row += 1
            if row != len(table):
                raise DataError(
                    f"{artifact.uri} has {row} turns of part {part.name}, which has {len(table)}; run gc and again"
                )
        for name, values in columns.items():
            field = CANDIDATES.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        self._writer.put_part(part.name, parquet_bytes(table), ".parquet", rows=part.rows, counters=part.counters)
        return {"rows": part.rows}
