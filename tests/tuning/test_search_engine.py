"""Choosing an approximate engine's setting: recall by scores, the fastest that reaches the target, and the whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raydistill.cli import main
from raydistill.config import TuneSearchConfig
from raydistill.encoders.batch import SparseBatch
from raydistill.index.publish import IndexWriter
from raydistill.index.search_result import SearchResult
from raydistill.index.segment import write_segment
from raydistill.storage.artifacts import fingerprint
from raydistill.tuning.search_engine import Measured, chosen, console_table, recalls, results_page


def result(scores: list[list[float]]) -> SearchResult:
    padded = [[score if score > 0 else -np.inf for score in row] for row in scores]
    return SearchResult(np.zeros((len(scores), len(scores[0])), dtype=np.int64), np.array(padded, dtype=np.float32))


def measured(label: str, recall: float, milliseconds: float) -> Measured:
    return Measured(
        label, None if label == "exact" else {"kind": "seismic"}, recall, recall, milliseconds, milliseconds, 1.0
    )


def test_recall_counts_scores_so_that_ties_cost_nothing() -> None:
    truth = result([[3, 2, 2], [5, 4, 3], [1, 0, 0], [0, 0, 0]])
    found = result([[3, 2, 2], [5, 3, 1], [0, 0, 0], [0, 0, 0]])
    assert recalls(found, truth).tolist() == [1.0, pytest.approx(2 / 3), 0.0, 1.0]


def test_the_fastest_setting_that_finds_enough_is_chosen_and_never_the_exact_one() -> None:
    rows = [measured("exact", 1.0, 0.01), measured("a", 0.96, 0.3), measured("b", 0.99, 0.2), measured("c", 0.90, 0.1)]
    pick = chosen(rows, 0.95)
    assert pick is not None
    assert pick.label == "b"
    assert chosen(rows, 0.995) is None
    table = console_table(rows, TuneSearchConfig(recall=0.95))
    assert table.row_count == 4
    assert b"<svg" in results_page(rows, TuneSearchConfig(), "Search of small")


@pytest.mark.usefixtures("ray_cluster")
def test_the_command_measures_a_grid_and_names_the_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("seismic", reason="pyseismic-lsr is not installed; pip install 'raydistill[seismic]'")
    rng = np.random.default_rng(8)
    vectors = SparseBatch.from_dense((rng.random((200, 80)) * (rng.random((200, 80)) < 0.2)).astype(np.float32))
    root = tmp_path / "runs"
    writer = IndexWriter(f"file://{root}", "small", fingerprint("index", 1, {}, {}))
    write_segment(tmp_path / "s.seg", vectors, [str(row) for row in range(200)], "f16")
    writer.put_segment("s", tmp_path / "s.seg", 200, vectors.nnz)
    writer.commit(["s"], 80, {})
    where = ["--root", str(root), "--index", "small", "--to", str(tmp_path / "out")]
    grid = ["n_postings=[5,500]", "query_cut=[80]", "heap_factor=[0.3]", "queries=30", "recall=0.9"]
    assert main(["tune-search", *where, *grid]) == 0
    printed = capsys.readouterr().out
    assert "engine: {build: {" in printed
    found = json.loads((tmp_path / "out" / "search-tuning.json").read_text())
    assert [each["engine"] and each["engine"]["build"]["n_postings"] for each in found["measured"]] == [None, 5, 500]
    assert found["measured"][2]["recall"] >= 0.9
    assert found["chosen"]["recall"] >= 0.9
    assert (tmp_path / "out" / "search-tuning.html").read_text().count("<svg") == 1
