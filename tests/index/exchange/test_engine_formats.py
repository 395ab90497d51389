"""What we export is searched by the engines themselves, where they are installed, and finds what brute force finds."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import publish, random_vectors

from raydistill.config import ExportConfig, RayConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.index.exchange.export import export_index
from raydistill.index.exchange.quantise import Quantisation
from raydistill.index.exchange.queries import query_lines
from raydistill.index.publish import IndexVersion
from raydistill.index.search import open_searcher

VOCABULARY = 60
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def version(tmp_path: Path) -> IndexVersion:
    parts = [random_vectors(1, 300, VOCABULARY, 0.3), random_vectors(2, 200, VOCABULARY, 0.3)]
    return publish(f"file://{tmp_path}/runs", tmp_path, parts)


def whole_queries() -> list[dict[str, int]]:
    rng = np.random.default_rng(3)
    terms = [rng.choice(VOCABULARY, size=6, replace=False).tolist() for _ in range(25)]
    # The largest weight is 32: BMP scales queries to that.
    return [{str(term): 32 if not place else int(rng.integers(1, 32)) for place, term in enumerate(six)} for six in terms]


def true_scores(version: IndexVersion, done: dict[str, Any], query: dict[str, int]) -> dict[str, int]:
    """Return the whole-number score of every passage by its id, those of 0 left out."""
    searcher = open_searcher(version)
    numbers = np.arange(version.passages)
    vectors = searcher.vectors(numbers)
    whole = Quantisation(**done["quantisation"]).apply(vectors.weights)
    dense = SparseBatch(vectors.indptr, vectors.term_ids, whole.astype(np.float32), VOCABULARY).to_dense().astype(int)
    scores = dense @ np.bincount([int(term) for term in query], weights=list(query.values()), minlength=VOCABULARY).astype(
        int
    )
    return {passage: int(score) for passage, score in zip(searcher.passage_ids(numbers), scores, strict=True) if score}


def bmp_index(version: IndexVersion, folder: Path) -> tuple[Any, dict[str, Any], str]:
    """Return BMP, what the export says, and the index that BMP made of the CIFF file."""
    bmp = pytest.importorskip("bmp", reason="bmp is not installed")
    done = export_index(version, str(folder / "to"), ExportConfig(format="ciff"), RayConfig(local_cpus=2))
    index = str(folder / "index.bmp")
    bmp.ciff2bmp(str(folder / "to" / "vectors" / "small.ciff"), index, 32, False)
    return bmp, done, index


# BMP 0.2.8 skips one block of 32 passages in every search, another for another query. So what it finds is compared, and that
# together the queries find everything.
def test_bmp_gives_passages_of_the_ciff_file_their_true_scores(version: IndexVersion, tmp_path: Path) -> None:
    bmp, done, index = bmp_index(version, tmp_path)
    searcher = bmp.Searcher(index)
    seen: set[str] = set()
    for query in whole_queries():
        truth = true_scores(version, done, query)
        ids, scores = searcher.search(query, version.passages, 1.0, 1.0)
        assert [truth[passage] for passage in ids] == [int(score) for score in scores]
        assert len(ids) >= len(truth) - 32
        seen.update(ids)
    assert len(seen) == sum(1 for row in open_searcher(version).vectors(np.arange(version.passages)).lengths() if row)


def test_bmp_reads_our_file_of_queries(version: IndexVersion, tmp_path: Path) -> None:
    bmp, done, index = bmp_index(version, tmp_path)
    asked = [{int(term): float(weight) for term, weight in query.items()} for query in whole_queries()]
    ids = [f"q{row}" for row in range(len(asked))]
    names = [str(term) for term in range(VOCABULARY)]
    lines = query_lines(ids, SparseBatch.from_rows(asked, VOCABULARY), names, "bmp", "", None)
    (tmp_path / "queries").write_text("".join(lines))
    truth = {query_id: true_scores(version, done, query) for query_id, query in zip(ids, whole_queries(), strict=True)}
    run = bmp.search(index, str(tmp_path / "queries"), 10, 1.0, 1.0).splitlines()
    assert len(run) == 10 * len(ids)
    for line in run:
        query_id, _, passage, _, score, _ = line.split()
        assert truth[query_id][passage] == int(float(score))


def test_pisa_finds_the_true_top_10_in_its_collection(version: IndexVersion, tmp_path: Path) -> None:
    pisa = _pisa()
    done = export_index(version, str(tmp_path / "to"), ExportConfig(format="pisa"), RayConfig(local_cpus=2))
    folder, vectors = tmp_path / "pisa", tmp_path / "to" / "vectors"
    folder.mkdir()
    for suffix in ("docs", "freqs", "sizes"):
        (folder / f"inv.{suffix}").write_bytes((vectors / f"small.{suffix}").read_bytes())
    pisa.build_binlex(str(vectors / "small.terms"), str(folder / "fwd.termlex"))
    pisa.build_binlex(str(vectors / "small.documents"), str(folder / "fwd.doclex"))
    context = pisa.RetrievalContext()
    pisa.prepare_index(context, str(folder), "block_simdbp", "quantized", "", quantize=0, stop_fname="")
    queries = whole_queries()
    room = 10 * len(queries)
    rows, ranks = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    ids, scores = np.empty(room, dtype=object), np.empty(room, dtype=np.float32)
    size = pisa.retrieve(
        context,
        "block_max_maxscore",
        [(row, {term: float(weight) for term, weight in query.items()}) for row, query in enumerate(queries)],
        k=10,
        threads=1,
        query_weighted=1,
        pretokenised=True,
        result_qidxs=rows,
        result_docnos=ids,
        result_ranks=ranks,
        result_scores=scores,
    )
    assert size == room
    for row, query in enumerate(queries):
        truth = true_scores(version, done, query)
        mine = np.flatnonzero(rows == row)
        assert sorted(scores[mine].astype(int), reverse=True) == sorted(truth.values(), reverse=True)[:10]
        assert [truth[passage] for passage in ids[mine]] == scores[mine].astype(int).tolist()


def _pisa() -> Any:
    """PISA's compiled module, without the package around it, which needs PyTerrier."""
    package = find_spec("pyterrier_pisa")
    files = [] if package is None or package.origin is None else list(Path(package.origin).parent.glob("_pisathon*.so"))
    if not files:
        pytest.skip("pyterrier-pisa is not installed")
    loader = ExtensionFileLoader("_pisathon", str(files[0]))
    spec = spec_from_loader("_pisathon", loader)
    assert spec is not None
    try:
        module = module_from_spec(spec)
    except ImportError as error:
        pytest.skip(f"pyterrier-pisa cannot be loaded ({error})")
    loader.exec_module(module)
    return module
