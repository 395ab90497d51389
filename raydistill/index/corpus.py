"""The corpus on Ray: input files of any accepted format become canonical Parquet parts, bad rows a quarantine.

One shard is one input file. A worker streams it, closes a part every `passages_per_part` rows and puts it at once, and
at the end puts what it learned of the file: its quarantined rows and the hashes of its ids. Encoding and indexing the
parts is in `build`.

Parts of a corpus artifact, for file f and block b:
    {f:05d}-{b:05d}.parquet        passages (see `passage_files`), in file order
    {f:05d}-quarantine.json        {"file", "passages", "parts", "rows": [{"place", "reason"}, ...]}
    {f:05d}-ids.u64                ascending little-endian 64-bit hashes of the file's ids (only with several files)

Memory: the driver holds receipts, and with several files up to 28 bytes a passage while it looks for ids that two of
them share; a worker holds a row group of passages and 8 bytes for each passage of its file.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistill.actor_pool import map_shards
from raydistill.config import CorpusConfig, CorpusFormat, DatasetPart, PassageColumns, WorkerConfig
from raydistill.conversations.passages import dataset_passages, read_passages
from raydistill.conversations.prepared import corpus_files, corpus_fingerprint
from raydistill.conversations.qrels import check_qrels
from raydistill.conversations.records import Passage
from raydistill.conversations.rows import BadRow, Quarantine
from raydistill.errors import DataError
from raydistill.index.passage_files import PassageFileWriter, SeenIds, id_hash, passage_batches, shared_hash
from raydistill.index.publish import IndexVersion
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Manifest, Part, fingerprint
from raydistill.storage.files import open_input

logger = logging.getLogger("raydistill")
_FORMAT_VERSION = 1
_MOST_CHECKED_FOR_SHARED_IDS = 30_000_000
"""Passages up to which the driver looks for ids that two files share; it would need too much memory for more."""


def corpus_artifact(data: CorpusConfig, passages_per_part: int, root: str) -> Artifact:
    """Return the address of what `prepare_corpus` makes, committed or not. Raises StorageError when a file is missing."""
    settings: dict[str, Any] = {"corpus_format": data.corpus_format, "passages_per_part": passages_per_part}
    if data.corpus_columns != PassageColumns():
        settings["corpus_columns"] = data.corpus_columns
    inputs = {"files": corpus_fingerprint(data)}
    return Artifact(root, "corpus", "passages", fingerprint("corpus", _FORMAT_VERSION, settings, inputs))


def prepare_corpus(data: CorpusConfig, passages_per_part: int, workers: WorkerConfig, root: str) -> Artifact:
    """Return the corpus artifact (kind "corpus") of the input files, making what of it is missing.

    manifest.metadata: {"files": names, "passages": int, "quarantined": int, "ids_checked_across_files": bool}. Ids
    that two files share are an error, not a bad row, and are looked for up to 30 million passages.

    Raises:
        DataError: more than data.max_bad_rows malformed rows (named as soon as they are met), an id in two files, or
            no passage at all.
        StorageError: an input file is missing or unreadable.
    """
    files = corpus_files(data.corpus, data.corpus_format)
    artifact = corpus_artifact(data, passages_per_part, root)
    committed = artifact.find_manifest()
    if committed is not None:
        # max_bad_rows decides whether the corpus is good enough, not what is in it; so it is no part of the fingerprint.
        _check_limit(artifact, committed.parts, data.max_bad_rows)
        return artifact
    writer = ArtifactWriter(artifact)
    _convert(files, data, passages_per_part, workers, writer)
    _commit(files, data.max_bad_rows, writer)
    return artifact


def passage_parts(manifest: Manifest) -> tuple[Part, ...]:
    """Return the Parquet parts of a committed corpus, in corpus order."""
    return tuple(part for part in manifest.parts if _is_passages(part))


def indexed_corpus(index: IndexVersion) -> Artifact:
    """Return the corpus that an index was built from; it lies in the same run root, wherever that is now.

    Raises DataError for an index of imported vectors, which has none.
    """
    address = index.metadata.get("corpus")
    if address is None:
        raise DataError(f"{index.uri} was made of imported vectors, so the texts of its passages are not known")
    return Artifact(index.root, "corpus", address["name"], address["fingerprint"])


def quarantined_rows(artifact: Artifact) -> list[tuple[str, str]]:
    """Return (place, reason) of every row of the input files that was left out of a committed corpus."""
    return list(_quarantined(artifact, artifact.manifest().parts))


def judged_check(corpus: Artifact, qrels: Mapping[str, Mapping[str, int]]) -> Artifact | None:
    """Return where `check_judged_passages` remembers that it has passed; None where there is nothing to check."""
    judged = _judged(qrels)
    inputs = {"corpus": corpus.fingerprint}
    return Artifact(corpus.root, "judged", "passages", fingerprint("judged", 1, {"ids": judged}, inputs)) if judged else None


def _judged(qrels: Mapping[str, Mapping[str, int]]) -> list[str]:
    return sorted({passage_id for grades in qrels.values() for passage_id in grades})


def check_judged_passages(
    corpus: Artifact, qrels: Mapping[str, Mapping[str, int]], source: str, workers: WorkerConfig
) -> None:
    """Raise DataError when judged passages are not in the corpus, before anything is encoded.

    As many may be unknown as rows of the corpus were quarantined; they are logged. A check that has passed is
    remembered in the run root and not repeated.

    Args:
        qrels: query id -> passage id -> grade.
        source: URI that the qrels come from, for the message.
    """
    judged, passed = _judged(qrels), judged_check(corpus, qrels)
    if passed is None or passed.find_manifest() is not None:
        return
    manifest = corpus.manifest()
    specs = [{"part": part.to_json()} for part in passage_parts(manifest)]
    known: set[str] = set()
    arguments = {"corpus": corpus, "wanted": judged}
    with track("qrels", len(specs), "parts") as advance:
        for receipt in map_shards(specs, _IdFinder, arguments, workers.model_copy(update={"gpus": 0.0}), "index"):
            known.update(receipt["found"])
            advance(1)
    unknown = [passage_id for passage_id in judged if passage_id not in known]
    if len(unknown) > manifest.metadata["quarantined"]:
        check_qrels(qrels, lambda ids: [0 if passage_id in known else -1 for passage_id in ids], source)
    for passage_id in unknown:
        logger.warning("%s: judged passage %r is not in the corpus (rows of it were quarantined)", source, passage_id)
    ArtifactWriter(passed).commit([], {"judged": len(judged), "unknown": unknown})


def _is_passages(part: Part) -> bool:
    return part.key.endswith(".parquet")


def _quarantined(artifact: Artifact, parts: Sequence[Part]) -> Iterator[tuple[str, str]]:
    for part in parts:
        if part.counters.get("quarantined", 0):
            for row in json.loads(artifact.fetch(part).read_bytes())["rows"]:
                yield row["place"], row["reason"]


def _check_limit(artifact: Artifact, parts: Sequence[Part], max_bad_rows: int) -> None:
    """Raise DataError naming the first row beyond the limit."""
    if sum(part.counters.get("quarantined", 0) for part in parts) > max_bad_rows:
        quarantine = Quarantine(max_bad_rows)
        for place, reason in _quarantined(artifact, parts):
            quarantine.add(BadRow(place, reason))


def _convert(
    files: Sequence[str], data: CorpusConfig, passages_per_part: int, workers: WorkerConfig, writer: ArtifactWriter
) -> None:
    finished = writer.finished()
    by_file: dict[str, list[str]] = {}
    for name in finished:
        by_file.setdefault(name.partition("-")[0], []).append(name)
    specs = [
        {"file": number, "uri": uri, "finished": by_file.get(f"{number:05d}", [])}
        for number, uri in enumerate(files)
        if _end_name(number) not in finished
    ]
    arguments = {
        "writer": writer,
        "corpus_format": data.corpus_format,
        "columns": data.corpus_columns,
        "dataset": data.corpus_dataset,
        "passages_per_part": passages_per_part,
        "max_bad_rows": data.max_bad_rows,
        "keep_ids": len(files) > 1,
    }
    ends = [part for name, part in finished.items() if name.endswith("-quarantine")]
    _check_limit(writer.artifact, ends, data.max_bad_rows)
    with track("corpus", len(files), "files") as advance:
        advance(len(files) - len(specs))
        for receipt in map_shards(specs, _FileConverter, arguments, workers.model_copy(update={"gpus": 0.0}), "index"):
            ends.append(Part.from_json(receipt))
            _check_limit(writer.artifact, ends, data.max_bad_rows)
            advance(1)


def _commit(files: Sequence[str], max_bad_rows: int, writer: ArtifactWriter) -> None:
    finished = writer.finished()
    ends = [finished[_end_name(number)] for number in range(len(files))]
    passages = int(sum(end.counters["passages"] for end in ends))
    if not passages:
        raise DataError(f"{', '.join(files[:3])}: the corpus holds no passage; check data.corpus and data.corpus_format")
    several = len(files) > 1
    checked = passages <= _MOST_CHECKED_FOR_SHARED_IDS
    if several and checked:
        _check_shared_ids(files, writer.artifact, finished)
    names: list[str] = []
    for number, end in enumerate(ends):
        names += [_block_name(number, block) for block in range(int(end.counters["parts"]))]
        names += [_end_name(number), *([_ids_name(number)] if several else [])]
    metadata = {
        "files": [uri.rpartition("/")[2] for uri in files],
        "passages": passages,
        "quarantined": int(sum(end.counters["quarantined"] for end in ends)),
        "ids_checked_across_files": checked,
    }
    writer.commit(names, metadata)


def _check_shared_ids(files: Sequence[str], artifact: Artifact, finished: dict[str, Part]) -> None:
    hashes = [np.fromfile(artifact.fetch(finished[_ids_name(number)]), dtype="<u8") for number in range(len(files))]
    shared = shared_hash(hashes)
    if shared is None:
        return
    wanted, first, second = shared
    for name, part in sorted(finished.items()):
        if _is_passages(part) and name.startswith(f"{first:05d}-"):
            for passages in passage_batches(artifact.fetch(part)):
                for passage in passages:
                    if id_hash(passage.passage_id) == wanted:
                        raise DataError(
                            f"passage id {passage.passage_id!r} is in {files[first]} and in {files[second]}; "
                            "remove one of the two, or give them ids of their own"
                        )


def _block_name(file: int, block: int) -> str:
    return f"{file:05d}-{block:05d}"


def _end_name(file: int) -> str:
    return f"{file:05d}-quarantine"


def _ids_name(file: int) -> str:
    return f"{file:05d}-ids"


class _FileConverter:
    """Converts one input file; parts whose receipts exist are parsed again, for their ids, but not written again."""

    def __init__(
        self,
        writer: ArtifactWriter,
        corpus_format: CorpusFormat,
        columns: PassageColumns,
        dataset: DatasetPart | None,
        passages_per_part: int,
        max_bad_rows: int,
        keep_ids: bool,
    ) -> None:
        self._writer = writer
        self._format: CorpusFormat = corpus_format
        self._columns = columns
        self._dataset = dataset
        self._rows = passages_per_part
        self._max_bad_rows = max_bad_rows
        self._keep_ids = keep_ids

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        file, uri = int(spec["file"]), str(spec["uri"])
        quarantine = Quarantine(self._max_bad_rows)
        seen = SeenIds()
        with tempfile.TemporaryDirectory(prefix="raydistill-corpus-") as folder:
            parts = _Blocks(self._writer, file, set(spec["finished"]), self._rows, Path(folder))
            for place, row in self._read(uri):
                if isinstance(row, BadRow):
                    quarantine.add(row)
                elif not seen.add(row.passage_id):
                    quarantine.add(BadRow(place(), f"repeats the id {row.passage_id!r} of an earlier line"))
                else:
                    parts.add(row)
            parts.close()
        if self._keep_ids:
            self._writer.put_part(_ids_name(file), seen.hashes().astype("<u8").tobytes(), ".u64", rows=0)
        return self._put_end(file, uri, parts, quarantine).to_json()

    def _read(self, uri: str) -> Iterator[tuple[Callable[[], str], Passage | BadRow]]:
        """Yield the rows of a file with what tells the place of the row that was read last."""
        if self._dataset is not None:
            for number, row in enumerate(dataset_passages(uri, self._dataset, self._columns), start=1):
                yield partial("{}: row {}".format, uri, number), row
            return
        with open_input(uri) as stream:
            if self._format in ("parquet", "prepared"):
                for number, row in enumerate(read_passages(stream, uri, self._format, self._columns), start=1):
                    yield partial("{}: row {}".format, uri, number), row
                return
            lines = _CountedLines(stream)
            for row in read_passages(cast(BinaryIO, lines), uri, self._format, self._columns):
                yield lambda: f"{uri}:{lines.count}", row

    def _put_end(self, file: int, uri: str, parts: _Blocks, quarantine: Quarantine) -> Part:
        """Put the part whose receipt says that the file is done."""
        rows = [{"place": place, "reason": reason} for place, reason in quarantine.rows]
        found = {"file": uri.rpartition("/")[2], "passages": parts.rows, "parts": parts.count, "rows": rows}
        counters = {"passages": parts.rows, "parts": parts.count, "quarantined": len(rows)}
        return self._writer.put_part(_end_name(file), json.dumps(found, indent=1).encode(), ".json", 0, counters)


class _IdFinder:
    """Tells which of the wanted ids one corpus part holds."""

    def __init__(self, corpus: Artifact, wanted: list[str]) -> None:
        self._corpus = corpus
        self._wanted = pa.array(wanted, type=pa.string())

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        path = self._corpus.fetch(Part.from_json(spec["part"]))
        ids = pq.read_table(path, columns=["passage_id"]).column("passage_id")
        return {"found": ids.filter(pc.is_in(ids, value_set=self._wanted)).to_pylist()}


class _CountedLines:
    """The lines of a stream; `count` is the number of the line that was read last."""

    def __init__(self, stream: BinaryIO) -> None:
        self.count = 0
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for line in self._stream:
            self.count += 1
            yield line


class _Blocks:
    """The Parquet parts of one file, each put as soon as it is full."""

    def __init__(self, writer: ArtifactWriter, file: int, finished: set[str], rows_per_part: int, folder: Path) -> None:
        self.rows = 0
        self.count = 0
        self._writer = writer
        self._finished = finished
        self._file = file
        self._rows_per_part = rows_per_part
        self._folder = folder
        self._open: PassageFileWriter | None = None

    def add(self, passage: Passage) -> None:
        block, place = divmod(self.rows, self._rows_per_part)
        if place == 0:
            self.close()
            self.count = block + 1
            if _block_name(self._file, block) not in self._finished:
                self._open = PassageFileWriter(self._folder / f"{block}.parquet")
        if self._open is not None:
            self._open.add(passage)
        self.rows += 1

    def close(self) -> None:
        if self._open is None:
            return
        self._open.close()
        name = _block_name(self._file, self.count - 1)
        self._writer.put_part(name, self._open.path, ".parquet", rows=self._open.rows)
        self._open.path.unlink()
        self._open = None
