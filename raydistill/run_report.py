"""The report of a finished run: what its stages left is read, put into one page, stored beside them, and summed up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raydistill.progress import output_console
from raydistill.storage.artifacts import Artifact
from raydistill.storage.store import ObjectStore, open_store
from raydistill.teaching import teaching_counts

if TYPE_CHECKING:
    from raydistill.pipeline import Chain


def write_report(chain: Chain, evaluation: Artifact, student: Artifact) -> None:
    """Write report.html, report.json and model-card.md of a run, over those of before, and print the main table.

    The card is the student's, with what was measured on the test turns: the README.md to give it away with. What
    `raydistill ablate` found on the test turns is part of the report, where that has run.
    """
    from raydistill.distill.model_card import model_card
    from raydistill.evaluation.evaluate import load_metrics
    from raydistill.evaluation.report import build_report, console_table

    metrics = load_metrics(evaluation)
    curves, validation = chain.training_curves()
    store = open_store(chain.config.root)
    report = build_report(
        chain.config,
        metrics,
        curves,
        chain.stage_records(),
        validation,
        teaching=teaching_counts(chain.teach()),
        scoring=scoring_rows(chain),
        ablation=_ablation(chain, store),
    )
    store.replace(f"{chain.prefix}/report.html", report.html.encode())
    store.replace(f"{chain.prefix}/report.json", report.json.encode())
    (measured,) = (system for system in metrics["systems"] if system["role"] == "student")
    costs = {"FLOPS": {"mean": measured["flops"]["mean"]}, "L0": {"mean": measured["terms"]["mean"]}}
    card = model_card(chain.config, {**measured["measures"], **costs})
    store.replace(f"{chain.prefix}/model-card.md", f"{card}\n{_whose(student)}\n".encode())
    console = output_console()
    console.print(console_table(metrics))
    console.print(f"report   {store.root}/{chain.prefix}/report.html", soft_wrap=True, highlight=False)
    tell_encoder(student)


def tell_encoder(encoder: Artifact) -> None:
    """Print the address of a student or document encoder: what takes it out, serves it or starts from it asks for that."""
    output_console().print(f"{encoder.kind.replace('-', ' ')}  {encoder.uri}", soft_wrap=True, highlight=False)


def tested_card(student: Artifact) -> str | None:
    """Return a student's model card with the measures of its test turns; None where its run measured none, or another."""
    store, key = open_store(student.root), f"runs/{student.name}/model-card.md"
    if store.info(key) is None:
        return None
    card = store.read(key).decode()
    return card if _whose(student) in card else None


def _whose(student: Artifact) -> str:
    """The line by which a card in a run's folder tells its student: the run may have others."""
    return f"<!-- student {student.fingerprint} -->"


def scoring_rows(chain: Chain) -> list[dict[str, Any]]:
    """Return what the scorers of the training turns did: {"round": number, ...} a scorer and round."""
    from raydistill.scoring.stage import scoring_counts

    scorers = chain.config.scorers
    if not scorers:
        return []
    rounds = chain.planned_rounds(chain.teach()["train"], chain.index())
    return [
        {"round": number, **row}
        for number, each in enumerate(rounds, start=1)
        for row in scoring_counts(scorers, each.candidates)
    ]


def _ablation(chain: Chain, store: ObjectStore) -> dict[str, Any] | None:
    """Return what was found of the teachers; None where nothing was, or only for other settings."""
    key = f"{chain.prefix}/ablation-test.json"
    if store.info(key) is None:
        return None
    found: dict[str, Any] = json.loads(store.read(key))
    return found if found.get("fingerprint") == chain.fingerprint else None
