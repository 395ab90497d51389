"""The engines that `search.py` compares: each builds an index of the same vectors in a folder and searches it, query by
query.

An engine is a class with `available()` (raises ImportError with the reason), `build(vectors, folder)`, which returns
seconds by step ("convert" is what it takes to bring the vectors into the form the engine's API asks for, "build" all the
rest until the index is on disk), and `open(folder, queries)`, which returns a function of (query number, k) that gives
passage numbers and one that runs queries in a batch on some threads, or None. What an engine needs of each query
(strings, tensors) is made beforehand in `open`, except where its API does it inside the call.

Peers are optional: `pip install --no-deps --target FOLDER splade-index==0.2.0 pyseismic-lsr==0.5.4 bmp==0.2.8
pyterrier-pisa` and RAYDISTILL_BENCHMARK_PEERS=FOLDER[:FOLDER...], which is searched after the environment's own packages.
pyterrier-pisa further needs pyterrier and its dependencies, and libtbb.so.2 (in tbb==2020.3.254).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch

Ask = Callable[[int, int], NDArray[np.int64]]
Batch = Callable[[int, int], None] | None
for _folder in filter(None, os.environ.get("RAYDISTILL_BENCHMARK_PEERS", "").split(os.pathsep)):
    sys.path.append(_folder)


class _Timer:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Raydistill:
    """Ours: one segment, f16 impacts, postings skipped where it pays."""

    name = "raydistill"
    exhaustive = False
    approximate: float | None = None

    def available(self) -> str:
        return version("raydistill")

    def build(self, vectors: SparseBatch, folder: Path) -> dict[str, float]:
        from raydistill.index.segment import write_segment

        timer = _Timer()
        write_segment(folder / "0.seg", vectors.select([0]), ["0"], "f16")  # compiles the loops
        with timer.step("convert"):
            ids = [str(number) for number in range(len(vectors))]
        with timer.step("build"):
            write_segment(folder / "0.seg", vectors, ids, "f16")
        return timer.seconds

    def open(self, folder: Path, queries: SparseBatch) -> tuple[Ask, Batch]:
        from raydistill.index.search import Searcher
        from raydistill.index.segment import Segment

        segments = [Segment(folder / "0.seg")]
        searchers = {threads: Searcher(segments, threads=threads) for threads in (1, 2)}
        rows = [queries.select([row]) for row in range(len(queries))]

        def ask(row: int, k: int) -> NDArray[np.int64]:
            if self.exhaustive:
                return searchers[1].measured_search(rows[row], k, True)[0].passages[0]
            return searchers[1].search(rows[row], k, approximate=self.approximate).passages[0]

        def batch(k: int, threads: int) -> None:
            searchers[threads].measured_search(queries, k, self.exhaustive, self.approximate)

        return ask, batch

    def details(self, folder: Path, queries: SparseBatch, k: int) -> dict[str, float]:
        """Return the shares of postings and vector entries read, and the bytes of both sides of the segment."""
        from raydistill.index.search import Searcher
        from raydistill.index.segment import Segment
        from raydistill.index.segment_header import ARRAYS

        segment = Segment(folder / "0.seg")
        found, cost = Searcher([segment]).measured_search(queries, k, self.exhaustive, self.approximate)
        everything, _ = Searcher([segment]).measured_search(queries, k, True)
        same = np.array_equal(found.passages, everything.passages) and np.array_equal(found.scores, everything.scores)
        forward = ("row_offsets", "term_highs", "term_lows", "impacts")
        ids = ("id_offsets", "id_order", "id_bytes")
        stored = {name: getattr(segment, name).nbytes for name in ARRAYS}
        return {
            "postings_read": float(cost.postings.sum() / cost.matching.sum()),
            "vector_entries_read": float(cost.vector_entries.sum() / cost.matching.sum()),
            "equals_exhaustive": float(same),
            "forward_bytes_an_entry": sum(stored[name] for name in forward) / segment.postings,
            "postings_bytes_a_posting": sum(size for name, size in stored.items() if name not in forward + ids)
            / segment.postings,
        }


class RaydistillExhaustive(Raydistill):
    """Ours without skipping."""

    name = "raydistill exhaustive"
    exhaustive = True


class RaydistillApproximate(Raydistill):
    """Ours in two steps: unread terms count for a third of their bounds."""

    name = "raydistill approximate"
    approximate = 0.33


class Scipy:
    """scipy.sparse: one CSR matrix times a dense query, then argpartition."""

    name = "scipy"
    slow = True

    def available(self) -> str:
        import scipy

        return str(scipy.__version__)

    def build(self, vectors: SparseBatch, folder: Path) -> dict[str, float]:
        timer = _Timer()
        with timer.step("build"):
            np.save(folder / "indptr.npy", vectors.indptr)
            np.save(folder / "terms.npy", vectors.term_ids)
            np.save(folder / "weights.npy", vectors.weights)
        return timer.seconds

    def open(self, folder: Path, queries: SparseBatch) -> tuple[Ask, Batch]:
        from scipy.sparse import csr_matrix

        indptr = np.load(folder / "indptr.npy")
        parts = (np.load(folder / "weights.npy"), np.load(folder / "terms.npy"), indptr)
        matrix = csr_matrix(parts, shape=(len(indptr) - 1, queries.vocabulary_size))
        dense = np.zeros(queries.vocabulary_size, dtype=np.float32)

        def ask(row: int, k: int) -> NDArray[np.int64]:
            terms, weights = queries.row(row)
            dense[terms] = weights
            scores = matrix @ dense
            dense[terms] = 0
            best = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
            return best[np.lexsort((best, -scores[best]))]

        return ask, None


class SpladeIndex:
    """splade-index with its numba backend; a stand-in model hands it the vectors."""

    name = "splade-index"

    def available(self) -> str:
        import splade_index
        import torch

        torch.set_num_threads(1)
        return str(splade_index.__version__)

    def build(self, vectors: SparseBatch, folder: Path) -> dict[str, float]:
        import torch
        from splade_index import SPLADE

        timer = _Timer()
        with timer.step("convert"):
            texts = [str(number) for number in range(len(vectors))]
            parts = [
                torch.from_numpy(array) for array in (vectors.indptr, vectors.term_ids.astype(np.int64), vectors.weights)
            ]
            matrix = torch.sparse_csr_tensor(*parts, size=(len(vectors), vectors.vocabulary_size))
            # The call makes a query of its own to compile its loops.
            model = _StandIn(vectors.vocabulary_size, matrix, _tensors(vectors.select([0])))
        with timer.step("build"):
            index = SPLADE(backend="numba")
            index.index(model, texts, show_progress=False)
            index.save(str(folder))
        return timer.seconds

    def open(self, folder: Path, queries: SparseBatch) -> tuple[Ask, Batch]:
        from splade_index import SPLADE

        model = _StandIn(queries.vocabulary_size, None, _tensors(queries))
        index = SPLADE.load(str(folder), model=model)
        index.backend = "numba"
        index.document_ids = np.asarray(index.document_ids).astype(np.int64)

        def ask(row: int, k: int) -> NDArray[np.int64]:
            found = index.retrieve([row], k=k, return_as="doc_ids", show_progress=False, n_threads=1)
            return np.asarray(found[0], dtype=np.int64)

        return ask, None


class _StandIn:
    """What splade-index asks of a model: vectors of texts, which are row numbers here."""

    def __init__(self, vocabulary_size: int, documents: Any, queries: list[Any]) -> None:
        self._documents, self._queries = documents, queries
        self._vocabulary = {str(term): term for term in range(vocabulary_size)}
        self.tokenizer = self

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def encode_document(self, texts: list[str], **_: Any) -> Any:
        return self._documents

    def encode_query(self, texts: list[Any], **_: Any) -> list[Any]:
        return [self._queries[text if isinstance(text, int) else 0] for text in texts]


def _tensors(queries: SparseBatch) -> list[Any]:
    import torch

    rows = [queries.row(row) for row in range(len(queries))]
    size = (queries.vocabulary_size,)
    return [
        torch.sparse_coo_tensor(torch.from_numpy(terms.astype(np.int64))[None], torch.from_numpy(weights.copy()), size)
        for terms, weights in rows
    ]


class Seismic:
    """Seismic: approximate; strings for ids and tokens are what its API takes."""

    name = "seismic"
    n_postings, query_cut, heap_factor = 300, 12, 0.8

    def available(self) -> str:
        return version("pyseismic-lsr")

    def build(self, vectors: SparseBatch, folder: Path) -> dict[str, float]:
        import seismic

        timer = _Timer()
        string = seismic.get_seismic_string()
        with timer.step("convert"):
            words = np.array([str(term) for term in range(vectors.vocabulary_size)], dtype=string)
            dataset = seismic.SeismicDataset()
            for row in range(len(vectors)):
                terms, weights = vectors.row(row)
                dataset.add_document(str(row), words[terms], weights)
        with timer.step("build"), contextlib.redirect_stdout(io.StringIO()):
            index = seismic.SeismicIndex.build_from_dataset(dataset, n_postings=self.n_postings, num_threads=1)
            index.save(str(folder / "index"))
        return timer.seconds

    def open(self, folder: Path, queries: SparseBatch) -> tuple[Ask, Batch]:
        import seismic

        string = seismic.get_seismic_string()
        index = seismic.SeismicIndex.load(str(next(folder.iterdir())))
        rows = [queries.row(row) for row in range(len(queries))]
        tokens = [np.array([str(term) for term in terms.tolist()], dtype=string) for terms, _ in rows]

        def ask(row: int, k: int) -> NDArray[np.int64]:
            found = index.search(
                str(row), tokens[row], rows[row][1], k=k, query_cut=self.query_cut, heap_factor=self.heap_factor
            )
            return np.array([int(hit[2]) for hit in found], dtype=np.int64)

        return ask, None


class Bmp:
    """BMP: block-max pruning over impacts of 8 bits; exact over those (alpha 1, beta 1)."""

    name = "bmp"
    slow = True

    def available(self) -> str:
        return version("bmp")

    def build(self, vectors: SparseBatch, folder: Path) -> dict[str, float]:
        from bmp import Indexer

        timer = _Timer()
        scale = 255.0 / float(vectors.weights.max())
        with timer.step("convert"):
            words = [str(term) for term in range(vectors.vocabulary_size)]
            codes = np.maximum(1, np.rint(vectors.weights * scale)).astype(int)
        indexer = Indexer(str(folder / "index.bmp"), 32, False)
        for row in range(len(vectors)):
            start, stop = int(vectors.indptr[row]), int(vectors.indptr[row + 1])
            with timer.step("convert"):
                terms = [words[term] for term in vectors.term_ids[start:stop].tolist()]
                document = dict(zip(terms, codes[start:stop].tolist(), strict=True))
            with timer.step("build"):
                indexer.add_document(str(row), document)
        with timer.step("build"):
            indexer.finish()
        return timer.seconds

    def open(self, folder: Path, queries: SparseBatch) -> tuple[Ask, Batch]:
        from bmp import Searcher

        searcher = Searcher(str(folder / "index.bmp"))
        rows = [
            {str(term): float(weight) for term, weight in zip(*(part.tolist() for part in queries.row(row)), strict=True)}
            for row in range(len(queries))
        ]

        def ask(row: int, k: int) -> NDArray[np.int64]:
            ids, _ = searcher.search(rows[row], k, 1.0, 1.0)
            return np.array([int(found) for found in ids], dtype=np.int64)

        return ask, None


class Pisa:
    """PISA: MaxScore over impacts in whole numbers (times 100), block_simdbp; called below PyTerrier's data frames."""

    name = "pisa"

    def available(self) -> str:
        for folder in sys.path:
            for library in Path(folder).glob("**/libtbb.so.2") if "site-packages" not in folder and folder else ():
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        import pyterrier_pisa

        return str(pyterrier_pisa.__version__)

    def build(self, vectors: SparseBatch, folder: Path) -> dict[str, float]:
        from pyterrier_pisa import PisaIndex

        timer = _Timer()
        words = [f"t{term}" for term in range(vectors.vocabulary_size)]

        def documents() -> Any:
            for row in range(len(vectors)):
                with timer.step("convert"):
                    terms, weights = vectors.row(row)
                    toks = {words[term]: weight for term, weight in zip(terms.tolist(), weights.tolist(), strict=True)}
                yield {"docno": str(row), "toks": toks}

        start = time.perf_counter()
        index = PisaIndex(str(folder / "index"), text_field="toks", stemmer="none", stops="none", threads=1, overwrite=True)
        index.index(documents())
        # Compressing happens when an index is first opened.
        PisaIndex(str(folder / "index"), stemmer="none", stops="none", threads=1).quantized(num_results=10)
        timer.seconds["build"] = time.perf_counter() - start - timer.seconds["convert"]
        return timer.seconds

    def open(self, folder: Path, queries: SparseBatch) -> tuple[Ask, Batch]:
        from pyterrier_pisa import PisaIndex, _pisathon

        index = PisaIndex(str(folder / "index"), stemmer="none", stops="none", threads=1)
        retriever = index.quantized(num_results=10, query_algorithm="maxscore")
        rows = [
            {
                f"t{term}": float(weight) * 100
                for term, weight in zip(*(part.tolist() for part in queries.row(row)), strict=True)
            }
            for row in range(len(queries))
        ]

        def ask(row: int, k: int) -> NDArray[np.int64]:
            numbers, ranks = np.empty(k, dtype=np.int32), np.empty(k, dtype=np.int32)
            names, scores = np.empty(k, dtype=object), np.empty(k, dtype=np.float32)
            size = _pisathon.retrieve(
                retriever._ctxt,
                retriever.query_algorithm.value,
                [(0, rows[row])],
                k=k,
                threads=1,
                query_weighted=1,
                pretokenised=True,
                result_qidxs=numbers,
                result_docnos=names,
                result_ranks=ranks,
                result_scores=scores,
            )
            return np.array([int(name) for name in names[:size]], dtype=np.int64)

        return ask, None


ENGINES = {
    engine.name: engine
    for engine in (Raydistill, RaydistillExhaustive, RaydistillApproximate, Scipy, SpladeIndex, Seismic, Bmp, Pisa)
}
