"""Gold passages whose text the conversation files hold, compared with the corpus: shifted or foreign ids all exist there,
so only the text tells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistill.actor_pool import map_shards
from raydistill.config import WorkerConfig
from raydistill.errors import DataError
from raydistill.index.corpus import judged_check, passage_parts
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, Part, fingerprint

_SAMPLE_SIZE = 1000
_COMPARED = 60
_KEPT = 400
_DIGITS = 18
_WORDS = re.compile(r"\w+")


def gold_texts_check(corpus: Artifact, texts: Mapping[str, str]) -> Artifact | None:
    """Return where `check_gold_texts` remembers that it has passed; None where there is nothing to check."""
    sample = _sample(texts)
    name = fingerprint("gold-texts", 1, sample, {"corpus": corpus.fingerprint})
    return Artifact(corpus.root, "gold-texts", "passages", name) if sample else None


def is_checked(
    corpus: Artifact, qrels: Iterable[Mapping[str, Mapping[str, int]]], texts: Iterable[Mapping[str, str]]
) -> bool:
    """Return whether everything that `check_judged_passages` and this module check of a corpus has passed before."""
    checks = [*(judged_check(corpus, each) for each in qrels), *(gold_texts_check(corpus, each) for each in texts)]
    return all(check is None or check.find_manifest() is not None for check in checks)


def _sample(texts: Mapping[str, str]) -> dict[str, str]:
    return {each: _plain(texts[each]) for each in sorted(texts, key=_hash)[:_SAMPLE_SIZE] if _plain(texts[each])}


def check_gold_texts(corpus: Artifact, texts: Mapping[str, str], source: str, workers: WorkerConfig) -> None:
    """Raise DataError when most gold passages have another text in the corpus; says by how much their ids are shifted.

    A sample of at most 1,000 passages is compared, by the beginnings of their texts (words only). A check that has passed
    is remembered in the run root and not repeated.

    Args:
        texts: passage id -> text, as the conversation files hold it; ids that the corpus lacks are `check_judged_passages`'
            concern.
        source: where they come from, for the message.
    """
    sample, passed = _sample(texts), gold_texts_check(corpus, texts)
    if passed is None or passed.find_manifest() is not None:
        return
    wanted = sorted({found for each in sample for found in (each, _shifted(each, -1), _shifted(each, 1)) if found})
    specs = [{"part": part.to_json()} for part in passage_parts(corpus.manifest())]
    held: dict[str, str] = {}
    with track("gold texts", len(specs), "parts") as advance:
        arguments = {"corpus": corpus, "wanted": wanted}
        for receipt in map_shards(specs, _TextFinder, arguments, workers.model_copy(update={"gpus": 0.0}), "index"):
            held.update(receipt["texts"])
            advance(1)
    compared = {each: text for each, text in sample.items() if each in held}
    different = [each for each, text in compared.items() if not _same(text, held[each])]
    if 2 * len(different) > len(compared):
        raise DataError(_sentence(source, sample, held, different, len(compared)))
    ArtifactWriter(passed).commit([], {"compared": len(compared), "different": different[:_SAMPLE_SIZE]})


def _sentence(source: str, sample: Mapping[str, str], held: Mapping[str, str], different: list[str], compared: int) -> str:
    start = (
        f"{source}: {len(different)} of {compared} gold passages have another text in the corpus (the first is "
        f"{different[0]!r})"
    )
    for step in (-1, 1):
        moved = sum(_same(sample[each], held.get(_shifted(each, step) or "", "")) for each in different)
        if 2 * moved > len(different):
            return (
                f"{start}: theirs is the text of id {_shifted(different[0], step)!r} and so on, so ids are shifted by "
                f"{-step:+d} on one side; use files of one release, ids as they are published"
            )
    return f"{start}; check that data.corpus and the conversations are of one release"


def _plain(text: str) -> str:
    return " ".join(_WORDS.findall(text.casefold()))[:_KEPT]


def _same(one: str, other: str) -> bool:
    """Return whether one text holds the beginning of the other; a title may stand before either."""
    return bool(one and other) and (one[:_COMPARED] in other or other[:_COMPARED] in one)


def _shifted(passage_id: str, step: int) -> str | None:
    if len(passage_id) > _DIGITS or not (passage_id.isascii() and passage_id.isdecimal()):
        return None
    return str(int(passage_id) + step)


def _hash(passage_id: str) -> str:
    return hashlib.sha256(passage_id.encode()).hexdigest()


class _TextFinder:
    """Returns the beginnings of the texts of the wanted passages in one corpus part."""

    def __init__(self, corpus: Artifact, wanted: list[str]) -> None:
        self._corpus = corpus
        self._wanted = pa.array(wanted, type=pa.string())

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        path = self._corpus.fetch(Part.from_json(spec["part"]))
        texts: dict[str, str] = {}
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["passage_id", "text"]):
                found = batch.filter(pc.is_in(batch.column("passage_id"), value_set=self._wanted))
                ids, held = (found.column(name).to_pylist() for name in ("passage_id", "text"))
                texts.update(zip(ids, map(_plain, held), strict=True))
        return {"texts": texts}
