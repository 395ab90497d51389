"""Results into TensorBoard's files, an MLflow server, Weights & Biases. What is sent has an identity, the hash of the file:
what has arrived whole is not sent again.

The packages are optional and imported when they are asked for; secrets are read by them from the environment.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from raydistill.errors import ConfigError, UnavailableError
from raydistill.tracking.names import open_experiment, plain_name
from raydistill.tracking.results import Curve, TrackedResults

_NOT_IN_FOLDERS = re.compile(r"[^A-Za-z0-9_.\-]")
# Limits of MLflow's log_batch and of a parameter's value.
_METRICS_A_REQUEST, _PARAMETERS_A_REQUEST, _PARAMETER_LENGTH = 1000, 100, 6000
_TAG = "raydistill.report"
_COMPLETE = "raydistill_complete"
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def to_tensorboard(results: TrackedResults, folder: Path) -> Path:
    """Write event files under `{folder}/{name}-{identity}` and return that folder, one sub-folder a system.

    TensorBoard then draws all systems into one chart. Raises ConfigError without the package tensorboardX.
    """
    _needs("tensorboardX", "--tensorboard")
    from tensorboardX import SummaryWriter

    target = folder / f"{_folder_name(results.name, set())}-{results.identity}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Written aside: what was interrupted must not pass for done.
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        whole = Path(aside) / "events"
        taken = {"run"}
        for system, numbers in results.systems.items():
            with SummaryWriter(str(whole / _folder_name(system, taken))) as writer:
                for name, value in numbers.items():
                    writer.add_scalar(plain_name(f"all_turns/{name}"), value, 0)
                for name, curve in results.by_depth.get(system, {}).items():
                    _draw(writer, f"by_{curve.axis}/{name}", curve)
        with SummaryWriter(str(whole / "run")) as writer:
            writer.add_text("configuration", f"```json\n{json.dumps(results.settings, indent=1, ensure_ascii=False)}\n```")
            for stage, seconds in results.seconds.items():
                writer.add_scalar(plain_name(f"seconds/{stage}"), seconds, 0)
            for name, curve in results.curves.items():
                _draw(writer, name, curve)
        whole.rename(target)
    return target


def _folder_name(name: str, taken: set[str]) -> str:
    """Return a folder's name for a system, another one for every system."""
    plain = _NOT_IN_FOLDERS.sub("_", name)
    chosen = next(each for n in count(1) if (each := plain if n == 1 else f"{plain}-{n}") not in taken)
    taken.add(chosen)
    return chosen


def _draw(writer: Any, name: str, curve: Curve) -> None:
    for place, value in curve.points:
        if not math.isnan(value):
            writer.add_scalar(plain_name(name), value, place)


def to_mlflow(results: TrackedResults, uri: str, experiment: str) -> str:
    """Make a run in an experiment of a tracking server and return its id; one that holds these results is left as it is.

    Raises ConfigError without the package mlflow, UnavailableError when the server refuses or does not answer; a run that
    was begun is then marked as failed.
    """
    _needs("mlflow", "--mlflow")
    parameters = {plain_name(name): _cut(value) for name, value in results.flat_settings().items()}
    points = [(plain_name(name), 0, value) for name, value in results.numbers().items()]
    points += [(plain_name(name), *point) for name, curve in results.all_curves().items() for point in curve.points]
    # MLflow has no place for what is no number; the file that is attached has it.
    points = [point for point in points if not math.isnan(point[2])]
    with _told("MLflow", uri):
        client, number = open_experiment(uri, experiment)
        known = client.search_runs([number], f"tags.`{_TAG}` = '{results.identity}' and attributes.status = 'FINISHED'")
        if known:
            return str(known[0].info.run_id)
        run = client.create_run(number, tags={"mlflow.runName": results.name, _TAG: results.identity}).info
        try:
            _fill(client, run, parameters, points, results.files)
        except BaseException:
            with suppress(Exception):
                client.set_terminated(run.run_id, status="FAILED")
            raise
        # Only now does a later call find it and leave it be.
        client.set_terminated(run.run_id)
        return str(run.run_id)


def _fill(
    client: Any, run: Any, parameters: Mapping[str, str], points: list[tuple[str, int, float]], files: Mapping[str, bytes]
) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(name, value) for name, value in parameters.items()]
    metrics = [Metric(name, value, run.start_time, place) for name, place, value in points]
    for start in range(0, len(params), _PARAMETERS_A_REQUEST):
        client.log_batch(run.run_id, params=params[start : start + _PARAMETERS_A_REQUEST])
    for start in range(0, len(metrics), _METRICS_A_REQUEST):
        client.log_batch(run.run_id, metrics=metrics[start : start + _METRICS_A_REQUEST])
    with _on_disk(files) as paths:
        for path in paths:
            client.log_artifact(run.run_id, str(path))


def to_wandb(results: TrackedResults, project: str) -> str:
    """Make a run in a project and return its address, or its folder with WANDB_MODE=offline.

    Raises ConfigError without the package wandb, UnavailableError when the server refuses or does not answer.
    """
    _needs("wandb", "--wandb")
    import wandb

    numbers, curves = results.numbers(), results.all_curves()
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for name, curve in curves.items():
        for place, value in curve.points:
            rows.setdefault((curve.axis, place), {})[name] = value
    with _told("Weights & Biases", project):
        run = wandb.init(
            project=project, name=results.name, id=results.identity, resume="allow", config=dict(results.settings)
        )
        complete = False
        try:
            if not (run.resumed and run.summary.get(_COMPLETE)):
                for name, curve in curves.items():
                    run.define_metric(name, step_metric=curve.axis)
                for (axis, place), values in sorted(rows.items()):
                    run.log({axis: place, **values})
                artifact = wandb.Artifact(f"report-{results.identity}", type="report")
                with _on_disk(results.files) as paths:
                    for path in paths:
                        artifact.add_file(str(path))
                    run.log_artifact(artifact)
                run.summary.update({**numbers, _COMPLETE: True})
            complete = True
            return str(run.url or run.dir)
        finally:
            run.finish(exit_code=0 if complete else 1)
            wandb.teardown()  # waits until an offline run's file is written (see `training`)


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
            "environment and that it runs, then send them again"
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
