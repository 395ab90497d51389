"""The preparation job: conversations, judgements and a collection become Parquet parts with manifests, under one root.

Every split and the corpus is an artifact of its own, so the job continues where it was stopped: parts with a receipt are
not written again. What was left out is counted and listed in the artifacts; `conversations.prepared` reads them back.

Memory: the driver holds the conversations of one split at a time; passages pass through workers (see `index.corpus`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from raydistill.config import ConversationSource, CorpusConfig, CorpusFormat, PrepareConfig, Reader
from raydistill.conversations.prepared import CONVERSATIONS, CORPUS, name_artifact, put_conversations, quarantined_rows
from raydistill.conversations.readers import file_notes, read_whole, source_fingerprint
from raydistill.conversations.releases import require_release
from raydistill.conversations.rows import BadRow, Quarantine
from raydistill.errors import ConfigError, StorageError
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Manifest, fingerprint
from raydistill.storage.files import input_files
from raydistill.storage.probe import check_root

logger = logging.getLogger("raydistill")
_FORMAT_VERSION = 1
_CONVERSATION_COUNTS = ("conversations", "queries", "judged", "quarantined")


@dataclass(frozen=True, slots=True)
class Prepared:
    """One part of a data set that was prepared.

    Attributes:
        part: its name.
        uri: what configurations name.
        counts: rows by kind, and what was quarantined.
    """

    part: str
    uri: str
    counts: dict[str, int]


def prepare(config: PrepareConfig) -> list[Prepared]:
    """Prepare what of a data set is missing, and return all its parts.

    Raises DataError for more malformed rows than allowed, StorageError for inputs that are missing or a root that is unfit.
    """
    check_root(config.to)
    parts = [_prepare_conversations(config, part, source) for part, source in config.conversations.items()]
    if config.corpus is not None:
        parts.append(_prepare_corpus(config, config.corpus))
    return parts


def _prepare_conversations(config: PrepareConfig, part: str, source: ConversationSource) -> Prepared:
    reader = source.reader or ""
    settings = {"per_part": config.conversations_per_part}
    name = fingerprint(CONVERSATIONS, _FORMAT_VERSION, settings, {"source": source_fingerprint(source, reader)})
    artifact = Artifact(config.to, CONVERSATIONS, f"{config.dataset}-{part}", name)
    manifest = artifact.find_manifest()
    if manifest is None:
        file, quarantine = read_whole(source, reader, config.max_bad_rows)
        notes = file_notes(file, reader, source)
        writer = ArtifactWriter(artifact)
        names = put_conversations(writer, file, quarantine.rows, config.conversations_per_part)
        queries = [turn.query_id for one in file.conversations for turn in one.asked]
        made = {
            "conversations": len({one.conversation_id for one in file.conversations}),
            "queries": len(queries),
            "judged": sum(bool(file.qrels.get(query_id)) for query_id in queries),
            "quarantined": len(quarantine.rows),
        }
        manifest = writer.commit(names, {"reader": reader, "counts": made, "notes": list(notes)})
    else:
        _check_again(artifact, manifest, source, config.max_bad_rows)
    for note in manifest.metadata["notes"]:
        logger.warning("%s", note)
    counts = {kind: int(manifest.metadata["counts"][kind]) for kind in _CONVERSATION_COUNTS}
    return Prepared(part, name_artifact(artifact, config.dataset, part), counts)


def _check_again(artifact: Artifact, manifest: Manifest, source: ConversationSource, max_bad_rows: int) -> None:
    """Raise DataError when what was prepared earlier is not good enough now: neither limit nor release change what it is."""
    counts = manifest.metadata["counts"]
    if source.release is not None:
        require_release(source.release, source.conversations, counts["conversations"], counts["queries"], counts["judged"])
    quarantine = Quarantine(max_bad_rows)
    for place, reason in quarantined_rows(artifact):
        quarantine.add(BadRow(place, reason))


def _prepare_corpus(config: PrepareConfig, corpus: CorpusConfig) -> Prepared:
    from raydistill.actor_pool import connect, require_shared_root
    from raydistill.index.corpus import prepare_corpus

    connect(config.ray)
    require_shared_root(config.to)
    artifact = prepare_corpus(corpus, config.passages_per_part, config.workers, config.to)
    counts = _corpus_counts(artifact.manifest())
    return Prepared(CORPUS, name_artifact(artifact, config.dataset, CORPUS), counts)


def _corpus_counts(manifest: Manifest) -> dict[str, int]:
    return {name: int(manifest.metadata[name]) for name in ("passages", "quarantined")}


# The files of published data sets, as they lie in one folder after the download.


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of a data set lie: patterns below its folder, the first that matches counts.

    Attributes:
        reader: format of the conversations.
        conversations, qrels: part -> patterns of its one file; a part without conversations is left out.
        corpus: patterns of the files of passages.
        corpus_format: their format.
        released: whether the one part must be the release of the data set's name.
    """

    reader: Reader
    conversations: dict[str, tuple[str, ...]]
    qrels: dict[str, tuple[str, ...]]
    corpus: tuple[str, ...] = ()
    corpus_format: CorpusFormat = "jsonl"
    released: bool = False


def _topics(reader: Reader, *patterns: str) -> _Layout:
    return _Layout(reader, {"test": patterns}, {"test": ("*qrel*",)}, released=True)


_MTRAG_DOMAINS = ("clapnq", "cloud", "fiqa", "govt", "banking", "telco")

LAYOUTS: dict[str, _Layout] = {
    "topiocqa": _Layout(
        "topiocqa",
        {
            "train": ("*train*.json*", "retriever/*train*.json*"),
            "dev": ("*dev*.json*", "retriever/*dev*.json*", "*valid*.json*"),
        },
        {},
        ("full_wiki_segments.tsv*",),
        "tsv",
    ),
    "qrecc": _Layout(
        "qrecc",
        {"train": ("*train*.json*",), "test": ("*test*.json*",)},
        {},
        ("collection-paragraph/*", "passages/*", "passages*.jsonl*"),
    ),
    "cast-2019": _topics("cast", "evaluation_topics_v1.0.json"),
    "cast-2020": _topics("cast", "2020_manual_evaluation_topics_v1.0.json"),
    "cast-2021": _topics("cast", "2021_manual_evaluation_topics_v1.0.json"),
    "cast-2022": _topics("cast", "2022_evaluation_topics_tree_v1.0.json", "2022_evaluation_topics_flattened*.json"),
    "ikat-2023": _topics("ikat", "2023_test_topics.json"),
    "ikat-2024": _topics("ikat", "2024_test_topics.json"),
    "ikat-2025": _topics("ikat", "2025_test_topics.json"),
    "mtrag": _Layout(
        "mtrag", {"all": ("conversations.jsonl*",)}, {"all": ("qrels.tsv", "qrels/*.tsv")}, ("corpus.jsonl*",), "jsonl"
    ),
    "mtrag-tasks": _Layout(
        "mtrag-tasks",
        dict.fromkeys(_MTRAG_DOMAINS, ("generation_tasks/reference.jsonl",)),
        {name: (f"retrieval_tasks/qrels/{name}.tsv", f"retrieval_tasks/{name}/qrels/dev.tsv") for name in _MTRAG_DOMAINS},
    ),
    "beir": _Layout(
        "beir",
        dict.fromkeys(("train", "dev", "test"), ("queries.jsonl*",)),
        {part: (f"qrels/{part}.tsv",) for part in ("train", "dev", "test")},
        ("corpus.jsonl*",),
    ),
    "msmarco": _Layout(
        "tsv",
        {part: (f"queries.{part}.tsv*",) for part in ("train", "dev.small", "dev")},
        {part: (f"qrels.{part}.tsv*",) for part in ("train", "dev.small", "dev")},
        ("collection.tsv*",),
        "msmarco",
    ),
}


def published(dataset: str, folder: str, to: str, max_bad_rows: int = 0) -> dict[str, object]:
    """Return the plain values of a PrepareConfig for a published data set whose files lie in a folder (or S3 prefix).

    Raises ConfigError for an unknown data set, or a folder that holds none of its files.
    """
    if dataset not in LAYOUTS:
        raise ConfigError(
            f"there is no layout of a data set {dataset!r}; those are {', '.join(LAYOUTS)}; describe others by --config"
        )
    layout, base = LAYOUTS[dataset], folder.rstrip("/")
    conversations: dict[str, dict[str, object]] = {}
    for part, patterns in layout.conversations.items():
        found, qrels = _first(base, patterns), _first(base, layout.qrels.get(part, ()))
        # A file may hold the queries of all parts: a part is what its judgements make of it.
        shared = (len(layout.conversations) > 1 and len(set(layout.conversations.values())) == 1) or layout.reader == "tsv"
        for files in (found, qrels):
            if len(files) > 1:
                raise ConfigError(
                    f"{folder}: several files may be {dataset} {part} ({', '.join(files)}); name the right one by --config"
                )
        if found and (qrels or not shared):
            source: dict[str, object] = {"reader": layout.reader, "conversations": found[0]}
            source |= {"release": dataset} if layout.released else {}
            conversations[part] = {**source, **({"qrels": qrels[0], "judged_only": shared} if qrels else {})}
    corpus = _first(base, layout.corpus)
    if not conversations and not corpus:
        looked = [pattern for patterns in layout.conversations.values() for pattern in patterns]
        raise ConfigError(f"{folder}: holds no file of {dataset}; looked for {', '.join([*looked, *layout.corpus])}")
    tree: dict[str, object] = {"dataset": dataset, "to": to, "conversations": conversations, "max_bad_rows": max_bad_rows}
    if corpus:
        tree["corpus"] = {"corpus": corpus, "corpus_format": layout.corpus_format, "max_bad_rows": max_bad_rows}
    return tree


def _first(folder: str, patterns: Sequence[str]) -> list[str]:
    """Return the files of the first pattern that matches any."""
    for pattern in patterns:
        try:
            return input_files([f"{folder}/{pattern}"])
        except StorageError:
            continue
    return []
