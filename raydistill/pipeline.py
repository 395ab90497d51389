"""The chain of stages: what needs what, what is there already, and what a run leaves behind. No logic of any stage.

Each stage is a function from the configuration and immutable inputs to one immutable output. A stage whose output
exists is skipped, a half-done one continues; so submitting the same configuration again is how anything is resumed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

from raydistill import __version__
from raydistill.actor_pool import connect
from raydistill.config import DistillConfig, RecordedTeacherConfig
from raydistill.config_loading import dump_config
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationalQuery, ConversationSet
from raydistill.encoders.documents import load_term_counter
from raydistill.index.publish import IndexVersion
from raydistill.progress import output_console
from raydistill.storage.artifacts import Artifact, fingerprint
from raydistill.storage.files import input_files
from raydistill.storage.probe import check_root
from raydistill.storage.store import open_store

logger = logging.getLogger("raydistill")
T = TypeVar("T")

STAGES = ("teach", "index", "score", "train", "evaluate")


def run(config: DistillConfig, until: str = "evaluate", dry_run: bool = False) -> None:
    """Run the stages that `until` needs, and `until` itself; see `Chain`.

    With `dry_run` everything is checked that can be checked without computing, and the plan is printed instead.

    Raises RaydistillError with a sentence when something cannot work.
    """
    chain = Chain(config)
    chain.check()
    if dry_run:
        from raydistill.plan import print_plan

        print_plan(chain, until)
        return
    chain.record_config()
    connect(config.ray)
    getattr(chain, until)()


class Chain:
    """The stages of one configuration, each computed at most once in this object's life."""

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self._results: dict[str, Any] = {}

    # Checks that cost seconds, before anything that costs hours.

    def check(self) -> None:
        """Raise when an input is missing or malformed, the store is unfit, or a model cannot be loaded."""
        check_root(self.config.root)
        input_files(self.config.data.corpus)
        for teacher in self.config.teachers:
            if isinstance(teacher, RecordedTeacherConfig):
                input_files([teacher.rewrites])
        load_term_counter(self.config.student)
        for source in (self.train_set, self.test_set):
            for place, reason in source.quarantined:
                logger.warning("left out: %s: %s", place, reason)

    @cached_property
    def train_set(self) -> ConversationSet:
        """The training conversations."""
        data = self.config.data
        return read_conversations(data.train, data.reader, data.max_bad_rows)

    @cached_property
    def test_set(self) -> ConversationSet:
        """The test conversations."""
        data = self.config.data
        return read_conversations(data.test, data.reader, data.max_bad_rows)

    def queries(self) -> list[ConversationalQuery]:
        """All turns that teachers rewrite: training and test."""
        both = [*self.train_set.queries(), *self.test_set.queries()]
        return list({query.query_id: query for query in both}.values())

    @property
    def queries_fingerprint(self) -> str:
        """Identity of what the teachers read."""
        inputs = {"train": self.train_set.fingerprint, "test": self.test_set.fingerprint}
        return fingerprint("queries", 1, {}, inputs)

    # The stages.

    def teach(self) -> Mapping[str, Artifact]:
        """Rewrite every turn with every teacher, one teacher after another."""
        from raydistill.teachers.pool import rewrites_artifact, teach

        root, teachers = self.config.root, self.config.teachers

        def is_finished() -> bool:
            planned = [rewrites_artifact(teacher, self.queries_fingerprint, root) for teacher in teachers]
            return all(artifact.find_manifest() is not None for artifact in planned)

        def rewrite() -> dict[str, Artifact]:
            queries = self.queries()
            return {teacher.name: teach(teacher, queries, self.queries_fingerprint, root) for teacher in teachers}

        return self._stage("teach", is_finished, rewrite)

    @cached_property
    def corpus(self) -> Artifact:
        """The corpus in canonical shards, every judged passage found in it: first part of the index stage."""
        from raydistill.index.corpus import check_judged_passages, prepare_corpus

        data, index = self.config.data, self.config.index
        corpus = prepare_corpus(data, index.passages_per_segment, index.workers, self.config.root)
        # Training and test judgements often share a file: one pass over the corpus for each file.
        judged: dict[str, dict[str, Mapping[str, int]]] = {}
        for source, found in ((data.train, self.train_set), (data.test, self.test_set)):
            judged.setdefault(source.qrels or source.conversations, {}).update(found.qrels)
        for uri, qrels in judged.items():
            check_judged_passages(corpus, qrels, uri, index.workers)
        return corpus

    def index(self) -> IndexVersion:
        """Encode the corpus into a published index version."""
        from raydistill.index.build import build_index, planned_index

        config, root = self.config, self.config.root
        return self._stage(
            "index",
            lambda: planned_index(config.index, config.student, self.corpus, root) is not None,
            lambda: build_index(config.index, config.student, self.corpus, root),
        )

    def score(self) -> Artifact:
        """Mine candidates for the training turns."""
        from raydistill.index.mine import candidates_artifact, mine_candidates

        rewrites, index = self.teach(), self.index()
        queries, qrels = list(self.train_set.queries()), self.train_set.qrels
        planned = candidates_artifact(self.config, queries, qrels, rewrites, index)
        return self._stage(
            "score",
            lambda: planned.find_manifest() is not None,
            lambda: mine_candidates(self.config, queries, qrels, rewrites, index),
        )

    def train(self) -> Artifact:
        """Distil the student."""
        from raydistill.distill.train import student_artifact, train

        candidates, index = self.score(), self.index()
        planned = student_artifact(self.config, candidates)
        return self._stage(
            "train", lambda: planned.find_manifest() is not None, lambda: train(self.config, candidates, index)
        )

    def evaluate(self) -> Artifact:
        """Measure everything on the test turns, write the report, and print the table."""
        from raydistill.evaluation.evaluate import evaluate, evaluation_artifact

        rewrites, index, student = self.teach(), self.index(), self.train()
        inputs = (list(self.test_set.queries()), self.test_set.qrels, rewrites, index, student, self.config.root)
        planned = evaluation_artifact(self.config, *inputs)
        evaluation = self._stage(
            "evaluate", lambda: planned.find_manifest() is not None, lambda: evaluate(self.config, *inputs)
        )
        self._report(evaluation, student)
        return evaluation

    def finished_stages(self) -> list[str]:
        """Return the stages that a run would skip, without computing anything or starting Ray."""
        from raydistill.distill.train import student_artifact
        from raydistill.evaluation.evaluate import evaluation_artifact
        from raydistill.index.build import planned_index
        from raydistill.index.corpus import corpus_artifact
        from raydistill.index.mine import candidates_artifact
        from raydistill.teachers.pool import rewrites_artifact

        config, root = self.config, self.config.root
        done: list[str] = []
        rewrites = {each.name: rewrites_artifact(each, self.queries_fingerprint, root) for each in config.teachers}
        if all(artifact.find_manifest() is not None for artifact in rewrites.values()):
            done.append("teach")
        corpus = corpus_artifact(config.data, config.index.passages_per_segment, root)
        index = planned_index(config.index, config.student, corpus, root)
        if index is None:
            return done
        done.append("index")
        # What follows is named by the index, so it can exist only if the index does.
        train = self.train_set
        candidates = candidates_artifact(config, list(train.queries()), train.qrels, rewrites, index)
        student = student_artifact(config, candidates)
        test = (list(self.test_set.queries()), self.test_set.qrels)
        evaluation = evaluation_artifact(config, *test, rewrites, index, student, root)
        for stage, artifact in (("score", candidates), ("train", student), ("evaluate", evaluation)):
            if artifact.find_manifest() is not None:
                done.append(stage)
        return done

    # What a run leaves behind, under {root}/runs/{run}.

    @property
    def prefix(self) -> str:
        """Key prefix of the run."""
        return f"runs/{self.config.run}"

    @cached_property
    def fingerprint(self) -> str:
        """Identity of everything in the configuration that changes results, and of the conversations."""
        return fingerprint("run", 1, self.config, {"queries": self.queries_fingerprint})

    def stage_records(self) -> list[dict[str, Any]]:
        """Return the stage log: {"stage", "seconds", "skipped"} in order of the stages."""
        key = f"{self.prefix}/stages.json"
        store = open_store(self.config.root)
        return list(json.loads(store.read(key))) if store.info(key) else []

    def record_config(self) -> None:
        """Store the resolved configuration and its fingerprint, so that the run can be repeated."""
        store = open_store(self.config.root)
        store.replace(f"{self.prefix}/config.yaml", dump_config(self.config).encode())
        identity = {"fingerprint": self.fingerprint, "raydistill": __version__}
        store.replace(f"{self.prefix}/config.json", json.dumps(identity).encode())

    def _stage(self, name: str, is_finished: Callable[[], bool], compute: Callable[[], T]) -> T:
        """Run a stage once, time it, and keep the record in the run's stage log."""
        if name in self._results:
            return self._results[name]
        started = time.monotonic()
        finished = is_finished()
        result = compute()
        seconds = time.monotonic() - started
        logger.info("%s: %s", name, "done already" if finished else f"done in {seconds:.0f} s")
        self._results[name] = result
        self._log_stage({"stage": name, "seconds": round(seconds, 2), "skipped": finished})
        return result

    def _log_stage(self, record: dict[str, Any]) -> None:
        """Put a record into the stage log; a skipped stage keeps the time it took when it ran."""
        before = self.stage_records()
        if record["skipped"]:
            earlier = [old for old in before if old["stage"] == record["stage"]]
            record = {**record, **({"seconds": earlier[0]["seconds"]} if earlier else {})}
        records = [old for old in before if old["stage"] != record["stage"]] + [record]
        records.sort(key=lambda one: STAGES.index(one["stage"]))
        open_store(self.config.root).replace(f"{self.prefix}/stages.json", json.dumps(records, indent=1).encode())

    def _report(self, evaluation: Artifact, student: Artifact) -> None:
        from raydistill.distill.train import training_records
        from raydistill.evaluation.evaluate import load_metrics
        from raydistill.evaluation.report import build_report, console_table

        metrics = load_metrics(evaluation)
        report = build_report(self.config, metrics, training_records(self.config, student), self.stage_records())
        store = open_store(self.config.root)
        store.replace(f"{self.prefix}/report.html", report.html.encode())
        store.replace(f"{self.prefix}/report.json", report.json.encode())
        console = output_console()
        console.print(console_table(metrics))
        console.print(f"report   {store.root}/{self.prefix}/report.html", soft_wrap=True, highlight=False)
        console.print(f"student  {student.uri}", soft_wrap=True, highlight=False)
