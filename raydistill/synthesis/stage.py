"""Synthesis on Ray: a language model writes conversations about a run's passages, and they become a prepared data set.

Two artifacts. "synthesis" holds what was written, one Parquet part a range of conversations, so that a resubmitted job goes
on where it was; its columns are conversation int64, position int32, and those of `writing.WrittenTurn`. "conversations" is
what `raydistill prepare` would make: the turns with the self-contained question as their rewrite and their passage as gold,
read by `reader: prepared`.

Memory: the driver holds the passages that are written about and all written turns; a worker holds the model and, mapped, the
index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.actor_pool import connect, map_shards, require_shared_root
from raydistill.config import DistillConfig, StudentConfig
from raydistill.config.synthesis import SynthesisConfig
from raydistill.config_loading import load_config
from raydistill.conversations.passage_sampling import corpus_passages, sampled
from raydistill.conversations.prepared import CONVERSATIONS, corpus_fingerprint, name_artifact, put_conversations
from raydistill.conversations.qrels import Qrels
from raydistill.conversations.records import Conversation, Passage, Turn
from raydistill.conversations.sources import ConversationFile
from raydistill.encoders.documents import load_document_encoder
from raydistill.errors import DataError, TeacherError
from raydistill.index.build import planned_index
from raydistill.index.candidates import parquet_bytes
from raydistill.index.corpus import corpus_artifact
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher
from raydistill.pipeline import Chain
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint
from raydistill.storage.parts import summed_counters
from raydistill.synthesis.planning import Plan, PlannedTurn, drawn_plans, with_passages
from raydistill.synthesis.wording import VERSION
from raydistill.synthesis.writing import ConversationWriter, Finder, IndexFinder
from raydistill.teachers.cache import GenerationCache
from raydistill.teachers.engine import Failure, Sampling
from raydistill.teachers.engines import check_teacher, engine_identity, open_writing
from raydistill.teachers.places import group_name, held_places

KIND = "synthesis"
PART = "train"
_FORMAT_VERSION = 1
_CONVERSATIONS_PER_PART = 10_000


@dataclass(frozen=True, slots=True)
class Synthesized:
    """What was written.

    Attributes:
        uri: what configurations name.
        conversations, turns: that were kept.
        counters: of the writing; see `ConversationWriter.counters`.
    """

    uri: str
    conversations: int
    turns: int
    counters: Mapping[str, float]


def synthesize(config: SynthesisConfig) -> Synthesized:
    """Write what is missing of a data set of conversations, and return where it is.

    Raises:
        ConfigError: the run's file or the model is wrong.
        DataError: the run has no index yet, or no passage is long enough.
        TeacherError: the model cannot go on, or not one conversation came out.
        ResourceError: the cluster cannot hold the workers.
    """
    run = load_config(config.run)
    index = _index(config, run)
    written = _written(config, run, index)
    counters = summed_counters(written.manifest().parts)
    conversations, qrels = _conversations(config.dataset, written)
    if not conversations:
        lost = {name: count for name, count in counters.items() if name.startswith(("failed", "not_found")) and count}
        reasons = ", ".join(f"{name} {count:g}" for name, count in lost.items())
        raise TeacherError(
            f"not one of {config.conversations} conversations came out ({reasons or 'nothing was written'}); correct llm, "
            "or raise depth"
        )
    artifact = Artifact(
        run.root,
        CONVERSATIONS,
        f"{config.dataset}-{PART}",
        fingerprint(CONVERSATIONS, _FORMAT_VERSION, {"dataset": config.dataset}, {KIND: written.fingerprint}),
    )
    queries = sum(len(one.turns) for one in conversations)
    if artifact.find_manifest() is None:
        writer = ArtifactWriter(artifact)
        names = put_conversations(
            writer, ConversationFile(written.uri, conversations, qrels=qrels), (), _CONVERSATIONS_PER_PART
        )
        made = {"conversations": len(conversations), "queries": queries, "judged": len(qrels), "quarantined": 0}
        writer.commit(names, {"reader": KIND, "counts": made, "notes": []})
    return Synthesized(name_artifact(artifact, config.dataset, PART), len(conversations), queries, counters)


def _index(config: SynthesisConfig, run: DistillConfig) -> IndexVersion | None:
    if config.depth == 0:
        return None
    settled = Chain(run).settled
    corpus = corpus_artifact(run.data, run.index.passages_per_segment, run.root)
    index = planned_index(settled.index, run.student, corpus, run.root)
    if index is None:
        raise DataError(
            f"run {run.run} has no index yet, and depth {config.depth} looks for passages in it; run `raydistill index` "
            "with its configuration first, or set depth to 0"
        )
    return index


def _written(config: SynthesisConfig, run: DistillConfig, index: IndexVersion | None) -> Artifact:
    """Return the artifact of what the model wrote."""
    settings = config.model_dump(mode="json", exclude={"dataset", "run", "ray", "conversations_per_task", "llm"})
    settings |= {"sampling": asdict(_sampling(config)), "prompt": VERSION, "budget": config.llm.max_prompt_tokens}
    inputs = {"corpus": corpus_fingerprint(run.data), "model": engine_identity(config.llm, "llm").key}
    inputs |= {"index": index.fingerprint} if index is not None else {}
    artifact = Artifact(run.root, KIND, config.dataset, fingerprint(KIND, _FORMAT_VERSION, settings, inputs))
    if artifact.find_manifest() is not None:
        return artifact
    plans, passages = _planned(config, run)
    writer = ArtifactWriter(artifact)
    finished = writer.finished()
    each = config.conversations_per_task
    groups = {
        f"{start:08}-{start + len(some):08}": some
        for start in range(0, len(plans), each)
        if (some := plans[start : start + each])
    }
    specs = [_spec(name, some, passages) for name, some in groups.items() if name not in finished]
    if specs:
        check_teacher(config.llm, "llm")
    arguments = {
        "llm": config.llm.model_dump(mode="json"),
        "writer": writer,
        "index": index,
        "documents": None if index is None else Chain(run).settled.index.documents.model_dump(mode="json"),
        "student": run.student,
        "depth": config.depth,
        "sampling": _sampling(config),
    }
    done = {name: part for name, part in finished.items() if name in groups}
    connect(config.ray)
    require_shared_root(run.root)
    with (
        track(f"synthesize {config.dataset}", len(plans), "conversations") as advance,
        held_places(config.llm, len(specs), artifact),
    ):
        advance(sum(len(groups[name]) for name in done))
        for receipt in map_shards(specs, _Worker, arguments, config.llm.workers, "llm"):
            part = Part.from_json(receipt)
            done[part.name] = part
            advance(len(groups[part.name]))
    writer.commit([done[name].name for name in groups], {"settings": settings})
    return artifact


def _planned(config: SynthesisConfig, run: DistillConfig) -> tuple[list[Plan], dict[str, Passage]]:
    """Return the conversations to be written, and the passages that they are about."""
    plans = drawn_plans(config.conversations, config.turns, config.topic_switch, config.kinds, config.seed)
    wanted = sum(plan.topics for plan in plans)
    passages = sampled(
        corpus_passages(run.data),
        wanted,
        config.seed,
        lambda passage: passage if len(passage.text.split()) >= config.min_words else None,
    )
    if not passages:
        raise DataError(f"no passage of run {run.run} has {config.min_words} words; lower min_words")
    return with_passages(plans, [passage.passage_id for passage in passages]), {each.passage_id: each for each in passages}


def _spec(name: str, plans: Sequence[Plan], passages: Mapping[str, Passage]) -> dict[str, Any]:
    own = {passage_id: passages[passage_id] for plan in plans for passage_id in plan.passages}
    return {
        "name": name,
        "plans": [
            {"number": plan.number, "turns": [[turn.topic, turn.kind] for turn in plan.turns], "passages": plan.passages}
            for plan in plans
        ],
        "passages": [[each.passage_id, each.text, each.title] for each in own.values()],
    }


def _conversations(dataset: str, written: Artifact) -> tuple[tuple[Conversation, ...], Qrels]:
    """Return the conversations that have a turn, with their judgements."""
    turns: dict[int, list[Turn]] = {}
    qrels: Qrels = {}
    for part in written.manifest().parts:
        for row in pq.read_table(written.fetch(part)).to_pylist():
            own = turns.setdefault(row["conversation"], [])
            query_id = f"{dataset}-{row['conversation']}_{len(own) + 1}"
            # Topics are told apart by their passages, which is all that a table of turns that change them needs.
            own.append(
                Turn(query_id, len(own) + 1, row["message"], row["answer"], row["standalone"], topic=row["passage_id"])
            )
            qrels[query_id] = {row["passage_id"]: 1}
    return tuple(Conversation(f"{dataset}-{number}", tuple(own)) for number, own in turns.items()), qrels


def _sampling(config: SynthesisConfig) -> Sampling:
    beams = getattr(config.llm, "num_beams", 1)
    return Sampling(config.llm.max_new_tokens, beams, config.llm.temperature, seed=config.seed)


class _Worker:
    """Writes ranges of conversations; loads model and index at the first of them."""

    def __init__(
        self,
        llm: Mapping[str, Any],
        writer: ArtifactWriter,
        index: IndexVersion | None,
        documents: Mapping[str, Any] | None,
        student: StudentConfig,
        depth: int,
        sampling: Sampling,
    ) -> None:
        from pydantic import TypeAdapter

        from raydistill.config import DocumentsConfig, GeneratingTeacherConfig

        self._llm: GeneratingTeacherConfig = TypeAdapter(GeneratingTeacherConfig).validate_python(llm)
        self._documents: DocumentsConfig | None = None
        if documents is not None:
            self._documents = TypeAdapter(DocumentsConfig).validate_python(documents)
        self._writer, self._index, self._student = writer, index, student
        self._depth, self._sampling = depth, sampling

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        plans = [
            Plan(each["number"], tuple(PlannedTurn(*turn) for turn in each["turns"]), tuple(each["passages"]))
            for each in spec["plans"]
        ]
        passages = {passage_id: Passage(passage_id, text, title) for passage_id, text, title in spec["passages"]}
        self._conversations.counters.clear()
        written = self._conversations.write(plans, passages)
        counters = dict(self._conversations.counters)
        if counters["prompts"] and not counters["turns"]:
            self._refuse_dead_engine(counters)
        rows = [
            {"conversation": plan.number, "position": position, **asdict(turn)}
            for plan, turns in zip(plans, written, strict=True)
            for position, turn in enumerate(turns)
        ]
        content = parquet_bytes(pa.Table.from_pylist(rows, schema=_SCHEMA))
        return self._writer.put_part(spec["name"], content, ".parquet", rows=len(rows), counters=counters).to_json()

    def _refuse_dead_engine(self, counters: Mapping[str, float]) -> None:
        """Raise TeacherError where the model answered nothing: stored, this would be taken for finished by later tries."""
        failed = {name.rpartition(".")[2]: count for name, count in counters.items() if name.startswith("failed.")}
        of_engine = sum(count for name, count in failed.items() if Failure(name).is_of_engine)
        if of_engine == counters["prompts"]:
            raise TeacherError(
                f"llm could answer none of {counters['prompts']:g} prompts ({', '.join(failed)}); correct its model or "
                "budgets, or look after its server"
            )

    @cached_property
    def _conversations(self) -> ConversationWriter:
        artifact = self._writer.artifact
        engine, tokenizer, budget = open_writing(self._llm, group_name(artifact), "llm")
        cache = GenerationCache(artifact.root, engine_identity(self._llm, "llm"))
        return ConversationWriter(engine, tokenizer, budget, cache, self._sampling, self._finder())

    def _finder(self) -> Finder | None:
        if self._index is None or self._documents is None:
            return None
        encoder = load_document_encoder(self._documents, self._student, self._index.open_statistics(), "cpu")
        return IndexFinder(open_searcher(self._index), encoder, self._depth)


_SCHEMA = pa.schema(
    [
        ("conversation", pa.int64()),
        ("position", pa.int32()),
        *((name, pa.string()) for name in ("passage_id", "kind", "standalone", "message", "answer")),
        ("rank", pa.int32()),
    ]
)
