"""Where training records go besides the run root: TensorBoard, Weights & Biases, MLflow. Rank 0 only; no Ray here.

The packages are optional and imported when they are asked for; `check_loggers` finds a missing one before any worker
starts. Secrets are read by the packages themselves from the environment and pass through nothing of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from raydistill.config import LoggersConfig
from raydistill.errors import ConfigError
from raydistill.tracking.names import open_experiment, plain_name

logger = logging.getLogger("raydistill")
_RECORDS = "the run root has all records"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class TrainingLogger(Protocol):
    """One destination of records."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of an optimizer step."""

    def close(self) -> None:
        """Send what is left; nothing is logged afterwards."""


def check_loggers(config: LoggersConfig) -> None:
    """Raise ConfigError when a destination is asked for whose package is not installed."""
    for field, package in _PACKAGES.items():
        if getattr(config, field) and find_spec(package) is None:
            off = "false" if field == "tensorboard" else "null"
            raise ConfigError(
                f"train.loggers.{field} needs the package {package}, which is not installed; pip install {package} on every "
                f"machine, or set train.loggers.{field} to {off}"
            )


def open_loggers(
    config: LoggersConfig,
    run: str,
    identity: str,
    settings: Mapping[str, Any],
    folder: Path,
    warn: Callable[[str], None] = logger.warning,
) -> list[TrainingLogger]:
    """Return the destinations that the configuration asks for.

    Args:
        run: name of the run. identity: of the training; a resumed training continues the same W&B run by it.
        settings: of the training, JSON-able, shown beside the curves.
        folder: an existing local folder for event files.
        warn: called with a sentence when a remote destination fails.
    """
    loggers: list[TrainingLogger] = []
    if config.tensorboard:
        loggers.append(_TensorBoard(folder))
    if config.wandb:
        loggers.append(Remote("W&B", partial(_WeightsAndBiases, config.wandb, run, identity, settings, folder), warn))
    if config.mlflow:
        place = (config.mlflow.uri, config.mlflow.experiment)
        loggers.append(Remote("MLflow", partial(_Mlflow, *place, run, identity, settings), warn))
    return loggers


def log_record(loggers: Sequence[TrainingLogger], record: Mapping[str, Any], prefix: str) -> None:
    """Hand a record's numbers, named prefix/field, to all destinations; its "step" is the optimizer step."""
    values = {
        f"{prefix}/{name}": float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float))
    }
    for destination in loggers:
        destination.log(values, int(record["step"]))


class Remote:
    """A destination that may fail, from its opening on: that is said once and it is left alone, since a curve elsewhere is
    not worth a training.

    The records in the run root are complete either way.
    """

    def __init__(self, name: str, open_it: Callable[[], TrainingLogger], warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._destination: TrainingLogger | None = None
        try:
            self._destination = open_it()
        except Exception as error:
            warn(f"{name} could not be opened ({type(error).__name__}); training goes on without it, {_RECORDS}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `TrainingLogger`."""
        if self._destination is None:
            return
        try:
            self._destination.log(values, step)
        except Exception as error:
            self._destination = None
            kind = type(error).__name__
            self._warn(f"{self._name} took no record at step {step} ({kind}); training goes on without it, {_RECORDS}")

    def close(self) -> None:
        """See `TrainingLogger`."""
        if self._destination is None:
            return
        try:
            self._destination.close()
        except Exception as error:
            self._warn(f"{self._name} could not be closed ({type(error).__name__})")


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, run: str, identity: str, settings: Mapping[str, Any], folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            project=project, name=run, id=identity, resume="allow", config=dict(settings), dir=str(folder)
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        import wandb

        self._run.finish()
        # `finish` may return before W&B's own process has written the file of an offline run; this waits for that process.
        wandb.teardown()


class _Mlflow:
    def __init__(self, uri: str, experiment: str, run: str, identity: str, settings: Mapping[str, Any]) -> None:
        self._client, number = open_experiment(uri, experiment)
        tags = {"mlflow.runName": run, "raydistill.training": identity}
        self._run = self._client.create_run(number, tags=tags).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._run, name, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, plain_name(name), value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)
