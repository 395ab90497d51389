"""Training workers as real processes that form a gloo group: what the tests of DeepSpeed run in.

DeepSpeed and process groups keep global state, so every run has processes of its own. They are forked from a server that
has the slow imports behind it, which makes a run cost seconds and not tens of them.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
import uuid
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOADED = [
    "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "transformers.models.bert.modeling_bert",
    "raydistill.distill.loop",
    "raydistill.index.search",
]
_SECONDS = 240


def start(work: Callable[[int, int, Any], None], workers: int, spec: Any, folder: Path) -> list[BaseProcess]:
    """Start `work(rank, workers, spec)` in every process of a group; tracebacks go to `folder`."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    meeting = f"file://{folder}/{uuid.uuid4().hex}"
    processes: list[BaseProcess] = []
    for rank in range(workers):
        # Not daemons, which could have no processes of their own; `finish` ends what does not end.
        process: BaseProcess = context.Process(target=_member, args=(work, rank, workers, spec, meeting, folder))
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[BaseProcess], folder: Path) -> None:
    """Wait for all processes. Raises AssertionError with the traceback of the first that failed."""
    for process in processes:
        process.join(_SECONDS)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    errors = sorted(folder.glob("error-*.txt"))
    assert not errors, errors[0].read_text()[-4000:]
    assert not alive, f"{len(alive)} workers did not end within {_SECONDS} s"
    assert [process.exitcode for process in processes] == [0] * len(processes)


def run(work: Callable[[int, int, Any], None], workers: int, spec: Any, folder: Path) -> None:
    """Run `work(rank, workers, spec)` in a group of processes and wait for its end."""
    finish(start(work, workers, spec, folder), folder)


def _member(work: Callable[[int, int, Any], None], rank: int, workers: int, spec: Any, meeting: str, folder: Path) -> None:
    import torch

    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
        work(rank, workers, spec)
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        raise
    # DeepSpeed's and gloo's threads need not be asked whether the process may end.
    os._exit(0)
