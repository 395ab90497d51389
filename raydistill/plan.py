"""The dry run: what a submission would run, skip or miss, told without starting Ray or computing anything."""

from __future__ import annotations

from rich.table import Table

from raydistill.config import DistillConfig, WorkerConfig
from raydistill.pipeline import STAGES, Chain
from raydistill.progress import output_console
from raydistill.storage.files import input_files


def print_plan(chain: Chain, until: str) -> None:
    """Print inputs, stages and resources of a checked chain up to the stage `until`."""
    config = chain.config
    console = output_console()
    console.print(f"run [bold]{config.run}[/bold], root {config.root}", highlight=False, soft_wrap=True)
    for name, found in (("train", chain.train_set), ("test", chain.test_set)):
        queries = list(found.queries())
        judged = sum(1 for query in queries if found.qrels.get(query.query_id))
        console.print(
            f"{name:<6} {len(found.conversations)} conversations, {len(queries)} turns, {judged} judged, "
            f"{len(found.quarantined)} rows left out",
            highlight=False,
        )
    console.print(f"corpus {len(input_files(config.data.corpus))} files", highlight=False)
    table = Table("stage", "state", "workers", "CPU each", "GPU each", "work")
    done = chain.finished_stages()
    for stage in STAGES[: STAGES.index(until) + 1]:
        for row in _rows(chain, stage, done):
            table.add_row(*row)
    console.print(table)


def _rows(chain: Chain, stage: str, done: list[str]) -> list[tuple[str, ...]]:
    config = chain.config
    if stage == "teach":
        return [_teacher_row(chain, number) for number in range(len(config.teachers))]
    work = {
        "index": f"segments of {config.index.passages_per_segment} passages, {config.index.documents.kind}",
        "score": f"top {config.score.top_k} of each of {len(config.teachers)} teachers",
        "train": f"{config.train.epochs:g} epochs of {len(list(chain.train_set.queries()))} turns, "
        f"batch {config.train.global_batch}, ZeRO {config.train.zero_stage}, {config.train.precision}",
        "evaluate": f"{', '.join(config.evaluate.measures)} at depth {config.evaluate.depth}",
    }
    return [(stage, "done" if stage in done else "to run or resume", *_workers(_pool(config, stage)), work[stage])]


def _teacher_row(chain: Chain, number: int) -> tuple[str, ...]:
    teacher = chain.config.teachers[number]
    turns = sum(1 for found in chain.sets().values() for _ in found.queries())
    made = [by_teacher[teacher.name].find_manifest() is not None for by_teacher in chain.planned_rewrites().values()]
    state = "done" if all(made) else "to run or resume"
    workers = ("driver", "", "") if teacher.engine == "recorded" else _workers(teacher.workers)
    return (f"teach {teacher.name}", state, *workers, f"{turns} turns, {teacher.engine}")


def _pool(config: DistillConfig, stage: str) -> WorkerConfig:
    pools = {
        "index": config.index.workers,
        "score": config.score.workers,
        "train": config.train.workers,
        "evaluate": config.evaluate.workers,
    }
    return pools[stage]


def _workers(workers: WorkerConfig) -> tuple[str, str, str]:
    return (str(workers.actors), f"{workers.cpus:g}", f"{workers.gpus:g}")
