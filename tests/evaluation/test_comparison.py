"""Runs side by side: the command's numbers are those of ir_measures and scipy, and mistakes are told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, nDCG
from scipy.stats import permutation_test

from raydistill.cli import main
from raydistill.config import EvaluateConfig
from raydistill.evaluation.comparison import compare_runs
from raydistill.evaluation.runs import Run

QUERIES = [f"c{number}<::>{number % 4 + 1}" for number in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three runs, of which the third lacks queries, and qrels."""
    made = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    qrels = {query: {f"d{number}": int(random.integers(0, 3)) for number in range(8)} for query in QUERIES}
    (made / "qrels.trec").write_text("".join(f"{q} 0 {d} {g}\n" for q, own in qrels.items() for d, g in own.items()))
    for name, noise, left_out in (("good", 0.5, 0), ("bad", 3.0, 0), ("holes", 0.5, 7)):
        lines = []
        for query in QUERIES[left_out:]:
            scores = {f"d{number}": qrels[query].get(f"d{number}", 0) + random.normal(scale=noise) for number in range(20)}
            ranked = sorted(scores.items(), key=lambda pair: -pair[1])
            lines += [f"{query} Q0 {d} {rank} {score:.6f} {name}\n" for rank, (d, score) in enumerate(ranked, start=1)]
        (made / f"{name}.trec").write_text("".join(lines))
    return made


def paths(folder: Path, *names: str) -> list[str]:
    return [str(folder / f"{name}.trec") for name in names]


def test_the_numbers_are_those_of_the_libraries(folder, tmp_path, capsys):
    arguments = ["compare", *paths(folder, "bad", "good", "holes"), "--qrels", str(folder / "qrels.trec")]
    assert main([*arguments, "--measures", "nDCG@10, RR", "--to", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "holes lacks 7 judged queries, which count 0: c0<::>1, " in printed
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert document["baseline"] == {"nDCG@10": "bad", "RR": "bad"}
    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.trec")))
    values = {}
    for row in document["rows"]:
        run = list(ir_measures.read_trec_run(str(folder / f"{row['name']}.trec")))
        for measure in (nDCG @ 10, RR):
            found = {each.query_id: each.value for each in ir_measures.iter_calc([measure], qrels, run)}
            own = np.array([found.get(query, 0.0) for query in QUERIES])
            values[row["name"], str(measure)] = own
            assert row["measures"][str(measure)]["mean"] == pytest.approx(own.mean())
            assert row["measures"][str(measure)]["low"] <= own.mean() <= row["measures"][str(measure)]["high"]
    for row in document["rows"][1:]:
        told = row["against"]["nDCG@10"]
        first, second = values[row["name"], "nDCG@10"], values["bad", "nDCG@10"]
        expected = permutation_test((first - second,), np.mean, permutation_type="samples", n_resamples=20_000, rng=0)
        assert told["p_value"] == pytest.approx(expected.pvalue, abs=0.01)
        assert told["difference"]["mean"] == pytest.approx((first - second).mean())
        assert (told["wins"], told["losses"]) == ((first > second).sum(), (first < second).sum())
    assert [len(row["missing"]) for row in document["rows"]] == [0, 0, 7]
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert text.count("<svg") == 2
    assert "://" not in text


def test_names_are_given_and_the_baseline_chosen(folder, capsys):
    bad, good = paths(folder, "bad", "good")
    arguments = ["compare", f"one={bad}", f"two={good}", "--qrels", str(folder / "qrels.trec"), "--measures", "RR"]
    assert main([*arguments, "--baseline", "two"]) == 0
    assert "against two" in capsys.readouterr().out
    assert main([*arguments, "--baseline", "three"]) == 1
    assert "--baseline is 'three', and the runs are one, two" in capsys.readouterr().err


def test_mistakes_are_told_in_a_sentence(folder, tmp_path, capsys):
    good, qrels = *paths(folder, "good"), str(folder / "qrels.trec")
    (tmp_path / "other.trec").write_text("x 0 d1 1\n")
    (tmp_path / "broken.trec").write_text("c0 Q0 d1 1\n")
    for words, sentence in (
        ([good, good, "--qrels", qrels], "two runs are called 'good'"),
        ([good, "--qrels", str(tmp_path / "other.trec")], "no run has a query that"),
        ([str(tmp_path / "broken.trec"), "--qrels", qrels], "broken.trec:1: a TREC run has 6 columns"),
        ([good, "--qrels", str(tmp_path / "nowhere.trec")], "nowhere.trec"),
        ([good, "--qrels", qrels, "--measures", "nDGC@3"], "'nDGC@3' is no ir_measures name"),
        ([good, "--qrels", qrels, "--samples", "0"], "bootstrap_samples"),
    ):
        assert main(["compare", *words]) == 1
        message = capsys.readouterr().err
        assert sentence in message
        assert "Traceback" not in message


def test_two_runs_of_one_name_are_refused():
    run = Run("a", {"q": (("d", 1.0),)})
    with pytest.raises(ValueError, match="two runs have one name: a, a"):
        compare_runs([run, run], {"q": {"d": 1}}, EvaluateConfig(), lambda measure, scores: "a")


@pytest.mark.real_data
def test_published_runs_are_compared(shared_data, capsys):
    runs = sorted((shared_data / "mtrag" / "clapnq" / "runs").glob("*.trec"))[:3]
    given = [f"run{number}={path}" for number, path in enumerate(runs)]
    assert main(["compare", *given, "--qrels", str(shared_data / "mtrag" / "clapnq" / "qrels.tsv"), "--samples", "100"]) == 0
    printed = capsys.readouterr().out
    assert "judged queries, against run0" in printed
    assert "run2" in printed
