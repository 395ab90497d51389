"""The numbers of a finished report or comparison in an experiment tracker: MLflow, Weights & Biases, TensorBoard.

Read from `report.json` or `comparison.json`, wherever it lies, so that old runs can be sent as well as new ones. No Ray. The
trackers' packages are optional and imported when they are asked for; secrets are read by them from the environment. What
is sent has an identity, the hash of the file: sending it again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raydistill.errors import ConfigError, DataError, StorageError, UnavailableError
from raydistill.storage.files import read_input

# What both MLflow and TensorBoard take in a name.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-/]")
_NOT_IN_FOLDERS = re.compile(r"[^A-Za-z0-9_.\-]")
# Limits of MLflow's log_batch and of a parameter's value.
_METRICS_A_REQUEST, _PARAMETERS_A_REQUEST, _PARAMETER_LENGTH = 1000, 100, 6000
_TAG = "raydistill.report"
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_LATENCIES = ("encode_ms", "search_ms", "total_ms")


@dataclass(frozen=True)
class Curve:
    """Numbers along an axis, "step" (of the optimizer) or "depth" (of the turn): (place, value) pairs."""

    axis: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TrackedResults:
    """What a tracker is given.

    Attributes:
        name: of the run or comparison. identity: 16 hexadecimal digits of the file's SHA-256.
        settings: the resolved configuration, or what was compared; JSON-able.
        systems: system -> name of a number -> value, such as "student" -> "nDCG@10" -> 0.31; means over the judged turns.
        by_depth: system -> name -> the same by turn depth.
        curves: name, such as "train/loss" -> values by step.
        files: name -> bytes: the JSON itself and the page beside it.
    """

    name: str
    identity: str
    settings: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, float]]
    by_depth: Mapping[str, Mapping[str, Curve]]
    curves: Mapping[str, Curve]
    files: Mapping[str, bytes]


def read_results(uri: str) -> TrackedResults:
    """Read report.json or comparison.json (path or s3://) and, if there is one, the page beside it.

    Raises:
        DataError: the file is neither.
        StorageError: it cannot be read.
    """
    content = read_input(uri)
    try:
        document = json.loads(content)
    except ValueError as error:
        raise DataError(f"{uri} is no JSON ({error}); name a report.json or a comparison.json") from None
    identity = hashlib.sha256(content).hexdigest()[:16]
    page = uri.removesuffix(".json") + ".html"
    files = {uri.rpartition("/")[2]: content}
    with suppress(StorageError):  # The JSON alone has every number.
        files[page.rpartition("/")[2]] = read_input(page)
    try:
        if "evaluation" in document:
            return _of_report(document, identity, files)
        if "rows" in document and "baseline" in document:
            return _of_comparison(document, identity, files)
    except (KeyError, TypeError) as error:
        raise DataError(f"{uri} lacks what a report has ({error!r}); write it again with this version") from None
    raise DataError(f"{uri} holds neither a report nor a comparison; name a report.json or a comparison.json")


def _of_report(document: Mapping[str, Any], identity: str, files: Mapping[str, bytes]) -> TrackedResults:
    systems, by_depth = {}, {}
    for system in document["evaluation"]["systems"]:
        systems[system["name"]] = {
            **{name: value["mean"] for name, value in system["measures"].items()},
            "FLOPS": system["flops"]["mean"],
            "L0": system["terms"]["mean"],
            **({"postings": system["postings"]["mean"]} if system.get("postings") else {}),
            "judged share": system["judged"],
            "missing": float(len(system["missing"])),
            **{
                f"{part}_ms {at}": system[f"{part}_ms"][at]
                for part in ("encode", "search", "total")
                for at in ("p50", "p99")
            },
        }
        depths = system["by_depth"]
        found = {
            name: tuple((each["first"], each["measures"][name]["mean"]) for each in depths) for name in system["measures"]
        }
        found["FLOPS"] = tuple((each["first"], each["flops"]["mean"]) for each in depths)
        found["L0"] = tuple((each["first"], each["terms"]["mean"]) for each in depths)
        by_depth[system["name"]] = {name: Curve("depth", points) for name, points in found.items()}
    curves = {**_curves("train", document["training"]), **_curves("validation", document["validation"])}
    seconds = {f"{stage['stage']} s": float(stage["seconds"]) for stage in document["stages"]}
    if seconds:
        systems["stages"] = seconds
    return TrackedResults(document["run"], identity, document["config"], systems, by_depth, curves, files)


def _of_comparison(document: Mapping[str, Any], identity: str, files: Mapping[str, bytes]) -> TrackedResults:
    systems = {
        row["name"]: {
            **{name: value["mean"] for name, value in row["measures"].items()},
            **{f"{name} p_holm": value["p_holm"] for name, value in row["against"].items()},
            "judged share": row["judged"],
            "missing": float(len(row["missing"])),
        }
        for row in document["rows"]
    }
    settings = {name: document[name] for name in ("qrels", "runs", "baseline", "queries", "measures") if name in document}
    return TrackedResults("comparison", identity, settings, systems, {}, {}, files)


def _curves(prefix: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                points.setdefault(f"{prefix}/{name}", []).append((int(record["step"]), float(value)))
    return {name: Curve("step", tuple(found)) for name, found in points.items()}


def to_tensorboard(results: TrackedResults, folder: Path) -> Path:
    """Write event files under `{folder}/{name}-{identity}` and return that folder, one sub-folder a system.

    TensorBoard then draws all systems into one chart. Raises ConfigError without the package tensorboardX.
    """
    _needs("tensorboardX", "--tensorboard")
    from tensorboardX import SummaryWriter

    target = folder / f"{_NOT_IN_FOLDERS.sub('_', results.name)}-{results.identity}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Written aside: what was interrupted must not pass for done.
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        whole = Path(aside) / "events"
        for system, numbers in results.systems.items():
            with SummaryWriter(str(whole / _NOT_IN_FOLDERS.sub("_", system))) as writer:
                for name, value in numbers.items():
                    writer.add_scalar(_plain(f"all_turns/{name}"), value, 0)
                for name, curve in results.by_depth.get(system, {}).items():
                    _draw(writer, f"by_{curve.axis}/{name}", curve)
        with SummaryWriter(str(whole / "training")) as writer:
            writer.add_text("configuration", f"```json\n{json.dumps(results.settings, indent=1, ensure_ascii=False)}\n```")
            for name, curve in results.curves.items():
                _draw(writer, name, curve)
        whole.rename(target)
    return target


def _draw(writer: Any, name: str, curve: Curve) -> None:
    for place, value in curve.points:
        if not math.isnan(value):
            writer.add_scalar(_plain(name), value, place)


def to_mlflow(results: TrackedResults, uri: str, experiment: str) -> str:
    """Make a run in an experiment of a tracking server and return its id; one that holds these results is left as it is.

    Raises ConfigError without the package mlflow, UnavailableError when the server refuses or does not answer.
    """
    _needs("mlflow", "--mlflow")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    with _told("MLflow", uri):
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        number = client.create_experiment(experiment) if found is None else found.experiment_id
        known = client.search_runs([number], f"tags.`{_TAG}` = '{results.identity}' and attributes.status = 'FINISHED'")
        if known:
            return str(known[0].info.run_id)
        run = client.create_run(number, tags={"mlflow.runName": results.name, _TAG: results.identity}).info
        now = run.start_time
        metrics = [
            Metric(_plain(name), value, now, step)
            for name, step, value in _points(results)
            if not math.isnan(value)  # MLflow has no place for it; the file that is attached has it.
        ]
        parameters = [Param(_plain(name), _cut(value)) for name, value in _flat(results.settings)]
        for start in range(0, len(parameters), _PARAMETERS_A_REQUEST):
            client.log_batch(run.run_id, params=parameters[start : start + _PARAMETERS_A_REQUEST])
        for start in range(0, len(metrics), _METRICS_A_REQUEST):
            client.log_batch(run.run_id, metrics=metrics[start : start + _METRICS_A_REQUEST])
        with _on_disk(results.files) as paths:
            for path in paths:
                client.log_artifact(run.run_id, str(path))
        # Only now does a later call find it and leave it be.
        client.set_terminated(run.run_id)
        return str(run.run_id)


def to_wandb(results: TrackedResults, project: str) -> str:
    """Make a run in a project and return its address, or its folder with WANDB_MODE=offline.

    Raises ConfigError without the package wandb, UnavailableError when the server refuses or does not answer.
    """
    _needs("wandb", "--wandb")
    import wandb

    with _told("Weights & Biases", project):
        # The identity is the run's: sent again, the numbers replace themselves.
        run = wandb.init(
            project=project, name=results.name, id=results.identity, resume="allow", config=dict(results.settings)
        )
        try:
            if not run.resumed:
                _log_to_wandb(run, results)
                artifact = wandb.Artifact(f"report-{results.identity}", type="report")
                with _on_disk(results.files) as paths:
                    for path in paths:
                        artifact.add_file(str(path))
                    run.log_artifact(artifact)
            return str(run.url or run.dir)
        finally:
            run.finish()


def _log_to_wandb(run: Any, results: TrackedResults) -> None:
    rows: dict[tuple[str, int], dict[str, float]] = {}
    curves = dict(results.curves)
    for system, found in results.by_depth.items():
        curves |= {f"by_depth/{system}/{name}": curve for name, curve in found.items()}
    for name, curve in curves.items():
        run.define_metric(name, step_metric=curve.axis)
        for place, value in curve.points:
            rows.setdefault((curve.axis, place), {})[name] = value
    for (axis, place), values in sorted(rows.items()):
        run.log({axis: place, **values})
    for system, numbers in results.systems.items():
        run.summary.update({f"{system}/{name}": value for name, value in numbers.items()})


def _points(results: TrackedResults) -> Iterator[tuple[str, int, float]]:
    for system, numbers in results.systems.items():
        for name, value in numbers.items():
            yield f"{system}/{name}", 0, value
    for system, curves in results.by_depth.items():
        for name, curve in curves.items():
            for place, value in curve.points:
                yield f"by_depth/{system}/{name}", place, value
    for name, curve in results.curves.items():
        for place, value in curve.points:
            yield name, place, value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return dotted names and values; lists of sections are numbered, other lists are JSON."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value):
                yield from _flat(each, f"{prefix}{name}.{number}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name.replace("@", "_at_"))


def _cut(value: str) -> str:
    return value if len(value) <= _PARAMETER_LENGTH else value[: _PARAMETER_LENGTH - 1] + "…"


@contextmanager
def _on_disk(files: Mapping[str, bytes]) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content)
        yield paths


@contextmanager
def _told(tracker: str, place: str) -> Iterator[None]:
    """Turn whatever a tracker's package raises into one sentence; the packages have many exceptions and no common one."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {_without_secrets(error)}"
        raise UnavailableError(
            f"{tracker} ({place}) did not take the results ({reason}); check the address, the credentials in the "
            "environment and that it runs, then send them again: nothing is doubled"
        ) from error


def _without_secrets(error: Exception) -> str:
    """Return the first line of what an exception says, without the credentials that the packages read."""
    text = (str(error).strip().splitlines() or [""])[0]
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text


def _needs(package: str, option: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f"{option} needs the package {package}, which is not installed; pip install {package}")
