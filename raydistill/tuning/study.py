"""A study on Ray Tune: what all trials share is computed first, then every trial trains and is measured on its own.

A trial is a function of Ray Tune without CPUs of its own (it waits while its training and evaluation work), so trials
never take the resources that their own workers need; at most `tune.max_concurrent` wait at a time. Training goes through
Ray Train as in any run, with checkpoints in the run root. A trial whose evaluation is there is not run again, a half-done
one continues, a failed one is tried again: submitting the same study again is how it is resumed.

Left in the run root, under runs/{study}: study.json, study.csv, study.parquet, report.html, and Tune's own state; and an
artifact of kind "study" with the same table, named by the trials' configurations and results.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune as ray_tune

from raydistill.actor_pool import connect
from raydistill.config import DistillConfig
from raydistill.conversations.records import ConversationSet
from raydistill.errors import RaydistillError, TuningError
from raydistill.evaluation.evaluate import evaluate, evaluation_artifact, load_metrics
from raydistill.pipeline import Chain
from raydistill.progress import Advance, output_console, track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.lease import writing
from raydistill.storage.store import open_store
from raydistill.tuning.outcomes import (
    FORMAT_VERSION,
    Outcome,
    csv_bytes,
    json_bytes,
    measured,
    parquet_bytes,
    table,
)
from raydistill.tuning.report import console_table, study_page
from raydistill.tuning.trials import Study, Trial

logger = logging.getLogger("raydistill")

_DRIVER_MEMORY = 512 << 20
"""Memory reserved for the driver of a trial: conversations and metrics, as for the driver of a run."""


def run_study(study: Study) -> Artifact:
    """Run what is missing of a study; store, print and return its table.

    Raises:
        TuningError: every trial failed; the message holds the first one's reason. The table is stored all the same.
        RaydistillError: what all trials share cannot be computed.
    """
    chains = _shared_chains(study)
    distinct = list({id(chain): chain for chain in chains.values()}.values())
    check_study(study)
    with writing(study.base.root, study.base.single_writer, f"study {study.tune.name}"):
        connect(study.base.ray)
        for chain in distinct:
            chain.check_resources("evaluate")
            chain.score()
        failures = _run_missing(study, chains)
        on = study.tune.measured_on
        outcomes = [_outcome(trial, _finished(trial, chains[trial.identity], on), failures) for trial in study.trials]
        artifact = _store(study, outcomes)
    console = output_console()
    console.print(console_table(study.tune, outcomes))
    console.print(f"report   {study.base.root}/runs/{study.tune.name}/report.html", soft_wrap=True, highlight=False)
    if not measured(outcomes):
        raise TuningError(f"all {len(outcomes)} trials failed; the first: {outcomes[0].failure}")
    return artifact


def check_study(study: Study) -> None:
    """Raise when an input of a trial is missing or malformed, the store is unfit, or a model cannot be loaded."""
    for chain in {id(chain): chain for chain in _shared_chains(study).values()}.values():
        chain.check()


def plan_text(study: Study) -> list[str]:
    """Return a line a trial: its identity, its label, and what it changes."""
    return [
        f"{trial.identity}  {trial.label}: "
        + (", ".join(f"{f}={value}" for f, value in trial.changes.items()) or "as it is")
        for trial in study.trials
    ]


def _shared_chains(study: Study) -> dict[str, Chain]:
    """Return, by trial, the chain of what comes before training; trials that differ only in training share one."""
    chains: dict[str, Chain] = {}
    by_trial = {}
    for trial in study.trials:
        config = trial.config.model_copy(update={"run": study.tune.name})
        earlier = config.model_dump(mode="json", include={"data", "teachers", "student", "index", "score"})
        by_trial[trial.identity] = chains.setdefault(fingerprint("before-training", 1, earlier, {}), Chain(config))
    return by_trial


def _run_missing(study: Study, chains: Mapping[str, Chain]) -> dict[str, str]:
    """Run the trials without a result on Ray Tune; return why, by identity, of those that failed."""
    on = study.tune.measured_on
    missing = [trial for trial in study.trials if _finished(trial, chains[trial.identity], on) is None]
    logger.info("tune: %d trials, %d of them done already", len(study.trials), len(study.trials) - len(missing))
    if not missing:
        return {}
    configs = {trial.identity: trial.config for trial in missing}

    def run_trial(parameters: dict[str, Any]) -> None:
        ray_tune.report(_trial_result(configs[parameters["trial"]], on))

    failures: dict[str, str] = {}
    with track("tune", len(study.trials), "trials") as advance:
        advance(len(study.trials) - len(missing))
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(run_trial, ray_tune.PlacementGroupFactory([{"memory": _DRIVER_MEMORY}])),
            param_space={"trial": ray_tune.grid_search(list(configs))},
            tune_config=ray_tune.TuneConfig(max_concurrent_trials=_concurrent(study)),
            run_config=ray_tune.RunConfig(
                name="tune",
                storage_path=f"{study.base.root.removeprefix('file://')}/runs/{study.tune.name}",
                verbose=0,
                callbacks=[_Progress(advance)],
            ),
        )
        with _quiet_tune():
            results = tuner.fit()
    for result in results:
        identity = (result.config or {}).get("trial", "")
        if result.error is not None:
            failures[identity] = _last_line(result.error)
        elif "failure" not in (result.metrics or {}):
            raise KeyboardInterrupt  # Tune ends in good order when it is interrupted
        elif result.metrics["failure"]:
            failures[identity] = result.metrics["failure"]
    return failures


def _trial_result(config: DistillConfig, on: str) -> dict[str, Any]:
    """Train and measure one trial; a failure is a result too, so that Tune neither retries it nor prints its stack."""
    try:
        chain = Chain(config)
        chain.record_config()
        student = chain.train()
        found, rewrites = _measured_on(chain, on)
        evaluate(chain.settled, list(found.queries()), found.qrels, rewrites, chain.index(), student, config.root)
    except RaydistillError as error:
        return {"failure": str(error)}
    except Exception as error:  # one trial's defect must not cost the others; its reason goes into the table
        logger.exception("trial %s", config.run)
        return {"failure": f"{type(error).__name__}: {_last_line(error)}"}
    return {"failure": ""}


def _measured_on(chain: Chain, on: str) -> tuple[ConversationSet, dict[str, Artifact]]:
    """Return the conversations that trials are measured on, with the teachers' rewrites where there are any."""
    if on == "test":
        return chain.inputs.test, chain.teach()["test"]
    assert chain.inputs.validation is not None  # `plan_study` has seen data.validation
    return chain.inputs.validation, {}


def _finished(trial: Trial, before: Chain, on: str) -> Artifact | None:
    """Return the evaluation of a trial if it is there, given the chain of what comes before training."""
    index = before.index()
    chain = Chain(trial.config)
    student = chain.planned_rounds(before.teach()["train"], index)[-1].student
    found, rewrites = _measured_on(before, on)
    queries = list(found.queries())
    evaluation = evaluation_artifact(chain.settled, queries, found.qrels, rewrites, index, student, trial.config.root)
    return evaluation if evaluation.find_manifest() is not None else None


def _outcome(trial: Trial, evaluation: Artifact | None, failures: Mapping[str, str]) -> Outcome:
    if evaluation is None:
        return Outcome(trial, None, failure=failures.get(trial.identity, "the trial ended without a result"))
    seconds = sum(record["seconds"] for record in Chain(trial.config).stage_records() if record["stage"].startswith("train"))
    return Outcome.of(trial, load_metrics(evaluation), seconds, evaluation.fingerprint)


def _store(study: Study, outcomes: Sequence[Outcome]) -> Artifact:
    """Put the table and the report into the run's folder, and the table as an artifact."""
    name, root = study.tune.name, study.base.root
    rows = table(study.tune, outcomes)
    contents = {
        ".json": json_bytes(study.tune, outcomes),
        ".csv": csv_bytes(rows),
        ".parquet": parquet_bytes(rows),
    }
    store = open_store(root)
    for suffix, content in contents.items():
        store.replace(f"runs/{name}/study{suffix}", content)
    store.replace(f"runs/{name}/report.html", study_page(study.tune, outcomes).encode())
    inputs = {outcome.trial.identity: outcome.evaluation or f"failed: {outcome.failure}" for outcome in outcomes}
    artifact = Artifact(root, "study", name, fingerprint("study", FORMAT_VERSION, study.tune, inputs))
    if artifact.find_manifest() is None:
        writer = ArtifactWriter(artifact)
        for suffix, content in contents.items():
            writer.put_part(suffix.removeprefix("."), content, suffix, rows=len(outcomes))
        writer.commit(["json", "csv", "parquet"], {"trials": len(outcomes), "measured": len(measured(outcomes))})
    return artifact


def _concurrent(study: Study) -> int:
    """Return how many trials run at once: as asked, or as many as the cluster can train at the same time."""
    if study.tune.max_concurrent is not None:
        return study.tune.max_concurrent
    total = ray.cluster_resources()
    at_once = []
    for trial in study.trials:
        workers = trial.config.train.workers
        for resource, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
            if each:
                at_once.append(int(total.get(resource, 0.0) / (each * workers.actors) + 1e-9))
    return max(1, min(at_once))


class _Progress(ray_tune.Callback):
    """Advances the driver's progress by every trial that ends."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._advance(1)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._advance(1)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune's own tables and hints off the terminal."""
    # Its newer reporter prints even when told not to; at verbosity 0 the older one does not.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
