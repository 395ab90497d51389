"""The dry run: what a submission would run, skip or miss, told without starting Ray or computing anything."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from raydistill.config import DistillConfig, LearnedDocumentsConfig, RecordedTeacherConfig, WorkerConfig
from raydistill.conversations.prepared import corpus_files
from raydistill.conversations.records import ConversationalQuery, ConversationSet
from raydistill.pipeline import Chain
from raydistill.progress import output_console


def print_plan(chain: Chain, until: str) -> None:
    """Print inputs, stages and resources of a checked chain up to the stage `until`."""
    config = chain.config
    console = output_console()
    console.print(f"run [bold]{config.run}[/bold], root {config.root}", highlight=False, soft_wrap=True)
    for name, found in chain.inputs.all().items():
        queries = list(found.queries())
        console.print(
            f"{name:<10} {_counts(found, queries)}, {len(found.quarantined)} rows left out", highlight=False, soft_wrap=True
        )
        sources = list(dict.fromkeys(query.source for query in queries))
        for source in sources if len(sources) > 1 else ():
            own = [query for query in queries if query.source == source]
            console.print(f"           {source}: {_counts(found, own)}", highlight=False, soft_wrap=True)
    console.print(f"corpus     {len(corpus_files(config.data.corpus, config.data.corpus_format))} files", highlight=False)
    table = Table("stage", "state", "workers", "CPU each", "GPU each", "work")
    done = chain.finished_stages()
    for stage in chain.stage_names(until):
        for row in _rows(chain, stage, done):
            table.add_row(*row)
    console.print(table)


def _counts(found: ConversationSet, queries: Sequence[ConversationalQuery]) -> str:
    conversations = len({(query.source, query.conversation_id) for query in queries})
    judged = sum(1 for query in queries if found.qrels.get(query.query_id))
    return f"{conversations} conversations, {len(queries)} turns, {judged} judged"


def _rows(chain: Chain, stage: str, done: list[str]) -> list[tuple[str, ...]]:
    config = chain.config
    if stage == "teach":
        return [_teacher_row(chain, number) for number in range(len(config.teachers))]
    state = "done" if stage in done else "to run or resume"
    kind, _, number = stage.partition(" round ")
    both = ", which encodes the rewrites too" if config.score.student_encodes_rewrites else ""
    student = f" and of the last student{both}" if number else ""
    documents = config.index.documents
    if isinstance(documents, LearnedDocumentsConfig) and stage == "documents":
        steps = f"{documents.training.steps} steps of {documents.training.global_batch} queries"
        return [(stage, state, *_workers(documents.training.workers), steps)]
    work = {
        "index": f"segments of {config.index.passages_per_segment} passages, {config.index.documents.kind}",
        "score": f"top {config.score.top_k} of each of {len(chain.inputs.teachers_of('train'))} teachers{student}"
        + "".join(f"; {scorer.depth} of them by {scorer.name}" for scorer in config.scorers),
        "train": f"{_trainings(config)}{config.train.epochs:g} epochs of {len(list(chain.inputs.train.queries()))} turns, "
        f"batch {config.train.global_batch}, ZeRO {config.train.zero_stage}, {config.train.precision}",
        "evaluate": f"{', '.join(config.evaluate.measures)} at depth {config.evaluate.depth}{_second_stage(config)}",
    }
    return [(stage, state, *_workers(_pool(config, kind)), work[kind])]


def _trainings(config: DistillConfig) -> str:
    number = config.train.averaged_seeds
    return "" if number == 1 else f"mean of {number} students, each of "


def _second_stage(config: DistillConfig) -> str:
    rerank = config.evaluate.rerank
    if rerank is None:
        return ""
    return f"; the first {rerank.depth} again by {rerank.model}, {rerank.workers.actors} x {rerank.workers.cpus:g} CPU"


def _teacher_row(chain: Chain, number: int) -> tuple[str, ...]:
    teacher = chain.config.teachers[number]
    covered = [name for name in chain.inputs.taught() if teacher in chain.inputs.teachers_of(name)]
    turns = sum(1 for name in covered for _ in chain.inputs.taught()[name].queries())
    planned = chain.planned_rewrites()
    made = [planned[name][teacher.name].find_manifest() is not None for name in covered]
    state = "done" if all(made) else "to run or resume"
    workers = ("driver", "", "") if teacher.engine == "recorded" else _workers(teacher.workers)
    if teacher.engine == "vllm":
        workers = (*workers[:2], str(teacher.tensor_parallel_size))
    only = "" if len(covered) > 1 else f" of {covered[0]}"
    shown = f"{turns} turns{only}"
    if isinstance(teacher, RecordedTeacherConfig):
        known = [chain.inputs.recorded[name][teacher.name] for name in covered]
        written = sum(len(each.raw) + len(each.held) for each in known)
        shown = shown if written == turns else f"{written} of {turns} turns{only}"
    elif teacher.spend is not None:
        shown += ", those of train within its budget"
    return (f"teach {teacher.name}", state, *workers, f"{shown}, {teacher.engine}")


def _pool(config: DistillConfig, stage: str) -> WorkerConfig:
    pools = {
        "index": config.index.workers,
        "score": config.score.workers,
        "train": config.train.workers,
        "evaluate": config.evaluate.workers,
    }
    return pools[stage]


def _workers(workers: WorkerConfig) -> tuple[str, str, str]:
    fewest = workers.fewest_actors
    actors = str(workers.actors) if fewest == workers.actors else f"{fewest} to {workers.actors}"
    return (actors, f"{workers.cpus:g}", f"{workers.gpus:g}")
