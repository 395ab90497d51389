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
from raydistill.actor_pool import connect, require_resources, require_shared_root
from raydistill.config import DistillConfig, RecordedTeacherConfig
from raydistill.config_loading import dump_config
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationSet
from raydistill.conversations.text import history_pairs
from raydistill.encoders.documents import check_positions, load_term_counter
from raydistill.errors import DataError
from raydistill.index.publish import IndexVersion
from raydistill.progress import output_console
from raydistill.storage.artifacts import Artifact, fingerprint
from raydistill.storage.files import input_files
from raydistill.storage.probe import check_root
from raydistill.storage.store import open_store
from raydistill.teachers.recorded import matching_rewrites

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
    chain.check_resources(until)
    getattr(chain, until)()


class Chain:
    """The stages of one configuration, each computed at most once in this object's life."""

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self._results: dict[str, Any] = {}

    # Checks that cost seconds, before anything that costs hours.

    def check(self) -> None:
        """Raise when an input is missing or malformed, the store is unfit, or a model cannot be loaded."""
        config = self.config
        check_root(config.root)
        input_files(config.data.corpus)
        for found in self.sets().values():
            for place, reason in found.quarantined:
                logger.warning("left out: %s: %s", place, reason)
        if not any(self.test_set.qrels.values()):
            raise DataError(
                f"no turn of data.test has a judgement ({config.data.test.qrels or config.data.test.conversations}), so "
                "nothing could be measured; check data.test.qrels and data.test.split"
            )
        recorded = [teacher for teacher in config.teachers if isinstance(teacher, RecordedTeacherConfig)]
        self._check_ids(bool(recorded))
        for teacher in recorded:
            matching_rewrites(
                teacher.rewrites, [each.query_id for found in self.sets().values() for each in found.queries()]
            )
        load_term_counter(config.student)
        check_positions(config.student)

    def _check_ids(self, recorded: bool) -> None:
        """Warn of turns in both sets; raise DataError where one id means two turns and rewrites are looked up by id."""
        train, test = ({each.query_id: each.question for each in found.queries()} for found in self.sets().values())
        shared = train.keys() & test.keys()
        same = [query_id for query_id in shared if train[query_id] == test[query_id]]
        if same:
            logger.warning("%d turns are in the training and in the test set: scores will flatter the student", len(same))
        if recorded and len(same) < len(shared):
            query_id = min(shared - set(same))
            raise DataError(
                f"query id {query_id!r} names one turn in data.train and another in data.test, and recorded rewrites are "
                "found by id; give the turns of the two files ids of their own"
            )

    def check_resources(self, until: str) -> None:
        """Raise ResourceError when the connected cluster can never hold the workers of a stage up to `until`."""
        config = self.config
        require_shared_root(config.root)
        pools = {
            **{
                f"teachers.{teacher.name}": teacher.workers
                for teacher in config.teachers
                if not isinstance(teacher, RecordedTeacherConfig)
            },
            "index": config.index.workers,
            "score": config.score.workers,
            "train": config.train.workers,
            "evaluate": config.evaluate.workers,
        }
        needed = {"teach": {"teach"}, "index": {"index"}}.get(until, set(STAGES[: STAGES.index(until) + 1]))
        for stage, workers in pools.items():
            if (stage.partition(".")[0].replace("teachers", "teach")) in needed:
                # Shards decide how many actors there will be; at least one must fit, and training needs them all.
                require_resources(workers if stage == "train" else workers.model_copy(update={"actors": 1}), stage)

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

    def sets(self) -> dict[str, ConversationSet]:
        """Both sets of conversations by name. Ids are unique within a set only, so the two are never mixed."""
        return {"train": self.train_set, "test": self.test_set}

    def planned_rewrites(self) -> dict[str, dict[str, Artifact]]:
        """Addresses of all rewrites: set name -> teacher name -> artifact, computed or not."""
        from raydistill.teachers.pool import rewrites_artifact

        root, teachers = self.config.root, self.config.teachers
        return {
            name: {each.name: rewrites_artifact(each, _turns_fingerprint(found), root) for each in teachers}
            for name, found in self.sets().items()
        }

    # The stages.

    def teach(self) -> dict[str, dict[str, Artifact]]:
        """Rewrite every turn of both sets with every teacher, one teacher after another; see `planned_rewrites`."""
        from raydistill.teachers.pool import teach

        root, teachers = self.config.root, self.config.teachers

        def is_finished() -> bool:
            planned = [artifact for by_teacher in self.planned_rewrites().values() for artifact in by_teacher.values()]
            return all(artifact.find_manifest() is not None for artifact in planned)

        def rewrite() -> dict[str, dict[str, Artifact]]:
            made: dict[str, dict[str, Artifact]] = {name: {} for name in self.sets()}
            for teacher in teachers:
                for name, found in self.sets().items():
                    queries = list(found.queries())
                    made[name][teacher.name] = teach(teacher, queries, _turns_fingerprint(found), root)
            return made

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

        # The corpus first: what is wrong with it should show before the teachers are paid.
        _ = self.corpus
        rewrites, index = self.teach()["train"], self.index()
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

        student = self.train()
        rewrites, index = self.teach()["test"], self.index()
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

        config, root = self.config, self.config.root
        done: list[str] = []
        rewrites = self.planned_rewrites()
        if all(artifact.find_manifest() is not None for made in rewrites.values() for artifact in made.values()):
            done.append("teach")
        corpus = corpus_artifact(config.data, config.index.passages_per_segment, root)
        index = planned_index(config.index, config.student, corpus, root)
        if index is None:
            return done
        done.append("index")
        # What follows is named by the index, so it can exist only if the index does.
        train = self.train_set
        candidates = candidates_artifact(config, list(train.queries()), train.qrels, rewrites["train"], index)
        student = student_artifact(config, candidates)
        test = (list(self.test_set.queries()), self.test_set.qrels)
        evaluation = evaluation_artifact(config, *test, rewrites["test"], index, student, root)
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
        return fingerprint("run", 1, self.config, {name: found.fingerprint for name, found in self.sets().items()})

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


def _turns_fingerprint(found: ConversationSet) -> str:
    """Return the identity of what teachers read of a set: ids, questions and histories, no judgements."""
    turns = [[query.query_id, query.question, history_pairs(query)] for query in found.queries()]
    return fingerprint("turns", 1, turns, {})
