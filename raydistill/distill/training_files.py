"""What a training leaves in the run root besides Ray Train's checkpoints: records, event files, the best parameters.

    {prefix}/metrics/{first step:08d}.jsonl        records of training steps, one file a start of the training
    {prefix}/validations/{first step:08d}.jsonl    records of validations
    {prefix}/tensorboard/{first step:08d}/         event files
    {prefix}/best/{step:08d}/                      parameters of the best step so far (see `checkpoints`)

Each object has one writer and is rewritten whole. No Ray here.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raydistill.distill.checkpoints import STATE_FILE, files_of
from raydistill.distill.engine import Workplace, any_worker
from raydistill.errors import TrainingError
from raydistill.storage.store import ObjectStore
from raydistill.tracking.training import TrainingLogger, log_record

Record = dict[str, Any]
# Ray keeps two checkpoints, and a third may be on its way while training goes on.
_CHECKPOINTS_THAT_COUNT = 3


class Recorder:
    """Keeps the records of rank 0 and writes them to the run root at every checkpoint.

    Args:
        store: of the run root. prefix: of the training.
        log_steps: optimizer steps between records that are kept; the last step and those with advice always are.
        first_step: steps done when this start of the training began; names its files.
        show: called with step and a short note for every step. warn: with the advice of a step that has some after one that
            had none.
        loggers: further destinations of what is kept. events: local folder of their event files.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        log_steps: int,
        steps: int,
        first_step: int,
        show: Callable[[int, str], None],
        warn: Callable[[str], None],
        loggers: Sequence[TrainingLogger],
        events: Path,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._log_steps = log_steps
        self._steps = steps
        self._start = f"{first_step:08d}"
        self._show, self._warn = show, warn
        self._has_warned = False
        self._loggers = loggers
        self._events = events
        self._records: dict[str, list[Record]] = {"metrics": [], "validations": []}

    def log(self, record: Record) -> None:
        """Take the record of a training step."""
        step = int(record["step"])
        if step % self._log_steps == 0 or step == self._steps or "advice" in record:
            self._records["metrics"].append(record)
            log_record(self._loggers, record, "train")
        if "advice" in record and not self._has_warned:
            self._warn(record["advice"])
        self._has_warned = "advice" in record
        self._show(step, f"loss {record['loss']:.3f} L0 {record['l0']:.0f}")

    def validated(self, record: Record) -> None:
        """Take the record of a validation."""
        self._records["validations"].append(record)
        log_record(self._loggers, record, "validation")

    def write(self) -> None:
        """Write everything so far to the run root."""
        for kind, records in self._records.items():
            if records:
                lines = "".join(json.dumps(record) + "\n" for record in records)
                self._store.replace(f"{self._prefix}/{kind}/{self._start}.jsonl", lines.encode())
        for path in sorted(self._events.glob("events.*")):
            self._store.replace(f"{self._prefix}/tensorboard/{self._start}/{path.name}", path)

    def close(self) -> None:
        """Let the loggers finish."""
        for logger in self._loggers:
            logger.close()


def read_records(store: ObjectStore, prefix: str, kind: str) -> list[Record]:
    """Return the records of a kind ("metrics" or "validations") in order of steps; a resumed run's count where two met."""
    keys = [info.key for info in store.list(f"{prefix}/{kind}/")]
    lines = [line for key in keys for line in store.read(key).decode().splitlines()]
    by_step = {record["step"]: record for record in map(json.loads, lines)}
    return [by_step[step] for step in sorted(by_step)]


class BestParameters:
    """The parameters of the best validation so far, in the run root, so that they outlive the workers.

    Those that a checkpoint still to be resumed from could call the best are kept, others removed.
    """

    def __init__(self, store: ObjectStore, prefix: str, place: Workplace, best_step: int | None) -> None:
        """`best_step` is the best of the checkpoint that training continues from; None where there is none."""
        self._store = store
        self._prefix = f"{prefix}/best"
        self._place = place
        self._counting: deque[int | None] = deque([best_step], maxlen=_CHECKPOINTS_THAT_COUNT)

    def put(self, step: int, folder: Path) -> None:
        """Store what all workers wrote, each its own files; complete when the state is there, which comes last."""
        for path in files_of(folder, self._place.rank):
            self._store.replace(self._key(step, path.name), path)
        any_worker(False, self._place)  # a barrier
        if self._place.rank == 0:
            self._store.replace(self._key(step, STATE_FILE), folder / STATE_FILE)
        any_worker(False, self._place)

    def fetch(self, step: int, folder: Path) -> None:
        """Lay the files of a step out in a local folder. Raises TrainingError when they are not in the store."""
        infos = list(self._store.list(f"{self._prefix}/{step:08d}/"))
        if not any(info.key.endswith(STATE_FILE) for info in infos):
            raise TrainingError(
                f"the best parameters, of step {step}, are no longer under {self._store.root}/{self._prefix}; remove the "
                "training's folder to train anew"
            )
        for info in infos:
            self._store.download(info.key, folder / info.key.rpartition("/")[2])

    def checkpointed(self, best_step: int | None) -> None:
        """Take note of a checkpoint and its best step, and remove earlier parameters that none needs any more."""
        self._counting.append(best_step)
        if self._place.rank != 0 or best_step is None:
            return
        for info in list(self._store.list(f"{self._prefix}/")):
            step = int(info.key[len(self._prefix) + 1 :].partition("/")[0])
            if step < best_step and step not in self._counting:
                self._store.delete(info.key)

    def _key(self, step: int, name: str) -> str:
        return f"{self._prefix}/{step:08d}/{name}"
