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
from typing import Any, NamedTuple, TypeVar

from raydistill import __version__
from raydistill.actor_pool import connect
from raydistill.config import DistillConfig, LearnedDocumentsConfig
from raydistill.config_loading import dump_config
from raydistill.conversations.records import ConversationalQuery
from raydistill.encoders.documents import trained_encoder
from raydistill.errors import ConfigError
from raydistill.index.publish import IndexVersion
from raydistill.inputs import RunInputs
from raydistill.preflight import check_endpoints, check_inputs, check_scoring_endpoints, check_workers
from raydistill.run_report import tell_encoder, write_report
from raydistill.stage_log import log_stage, read_stages
from raydistill.storage.artifacts import Artifact, fingerprint
from raydistill.storage.lease import writing
from raydistill.storage.store import open_store
from raydistill.teaching import Rewrites, planned_rewrites, teach_every_set

logger = logging.getLogger("raydistill")
T = TypeVar("T")
STAGES = ("teach", "documents", "index", "score", "train", "evaluate")


class Round(NamedTuple):
    """What a round of mining and training makes."""

    candidates: Artifact
    student: Artifact


def stage_name(stage: str, number: int) -> str:
    """Return a stage's name in the log and the plan: rounds after the first are named."""
    return stage if number == 1 else f"{stage} round {number}"


def run(config: DistillConfig, until: str = "evaluate", dry_run: bool = False) -> None:
    """Run the stages that `until` needs, and `until` itself; see `Chain`.

    With `dry_run` everything is checked that can be checked without computing, and the plan is printed instead.

    Raises RaydistillError with a sentence when something cannot work.
    """
    chain = Chain(config)
    chain.check(until)
    if dry_run:
        from raydistill.plan import print_plan

        print_plan(chain, until)
        return
    with writing(config.root, config.single_writer, f"run {config.run}"):
        chain.record_config()
        # A finished run only writes its report again, on any machine and at once.
        if not chain.is_finished(until):
            connect(config.ray)
            chain.check_resources(until)
        made = getattr(chain, until)()
    if until in ("documents", "train"):
        tell_encoder(made)


class Chain:
    """The stages of one configuration, each computed at most once in this object's life."""

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self.inputs = RunInputs(config)
        self._results: dict[str, Any] = {}

    def check(self, until: str = "evaluate") -> None:
        """Raise when an input is missing or malformed, the store is unfit, or a model cannot be loaded or asked."""
        check_inputs(self.config, self.inputs)
        if "teach" in self._needed(until):
            check_endpoints(self.config, self.planned_rewrites)
        if self.config.scorers and self._has_to_score(until):
            check_scoring_endpoints(self.config)
        if self._learns_documents:
            _ = self._document_turns

    def _has_to_score(self, until: str) -> bool:
        """Whether a stage up to one has candidates left to score."""
        scores = {name for name in self.stage_names(until) if name.partition(" ")[0] == "score"}
        return bool(scores - set(self.finished_stages()))

    def is_finished(self, until: str) -> bool:
        """Whether everything that a stage needs, and the stage itself, is made."""
        needed = self._needed(until)
        names = {name for name in self.stage_names(until) if name.partition(" round ")[0] in needed}
        return names <= set(self.finished_stages())

    def check_resources(self, until: str) -> None:
        """Raise ResourceError when the connected cluster can never hold the workers of a stage up to `until`."""
        check_workers(self.config, self._needed(until))

    def _needed(self, until: str) -> set[str]:
        """Return the stages up to one, rounds left out; documents and index need no teacher, though a whole run teaches
        before them."""
        names = {name.partition(" round ")[0] for name in self.stage_names(until)}
        return names - {"teach"} if until in ("documents", "index") else names

    def planned_rewrites(self) -> Rewrites:
        """Addresses of all rewrites, computed or not."""
        return planned_rewrites(self.config, self.inputs)

    # The stages.

    def teach(self) -> Rewrites:
        """Rewrite every turn of both sets with every teacher; see `teaching`."""

        def is_finished() -> bool:
            planned = [artifact for by_teacher in self.planned_rewrites().values() for artifact in by_teacher.values()]
            return all(artifact.find_manifest() is not None for artifact in planned)

        return self._stage("teach", is_finished, lambda: teach_every_set(self.config, self.inputs))

    @cached_property
    def corpus(self) -> Artifact:
        """The corpus in canonical shards, every judged passage found in it: first part of the index stage."""
        from raydistill.index.corpus import check_judged_passages, prepare_corpus
        from raydistill.index.gold_texts import check_gold_texts, is_checked

        data, index = self.config.data, self.config.index
        corpus = prepare_corpus(data, index.passages_per_segment, index.workers, self.config.root)
        judgements, texts = self.inputs.judgements(), [each.gold_texts for each in self.inputs.all().values()]
        if not is_checked(corpus, judgements.values(), texts):
            connect(self.config.ray)  # a run whose stages are all made has joined no cluster yet
        # Training and test judgements often share a file: one pass over the corpus for each file.
        for uri, qrels in judgements.items():
            check_judged_passages(corpus, qrels, uri, index.workers)
        for name, found in self.inputs.all().items():
            check_gold_texts(corpus, found.gold_texts, f"data.{name}", index.workers)
        return corpus

    @property
    def _learns_documents(self) -> bool:
        return isinstance(self.config.index.documents, LearnedDocumentsConfig)

    @cached_property
    def _document_turns(self) -> list[ConversationalQuery]:
        from raydistill.distill.document_examples import training_turns
        from raydistill.distill.document_mining import recorded_query_ids

        documents = self.config.index.documents
        assert isinstance(documents, LearnedDocumentsConfig)
        held_out = {f"data.{name}": found for name, found in self.inputs.all().items() if name != "train"}
        return training_turns(self.inputs.train, held_out, recorded_query_ids(documents.training))

    @cached_property
    def settled(self) -> DistillConfig:
        """The configuration that names the document encoder it trains, made or not; the configuration itself without one."""
        if not self._learns_documents:
            return self.config
        from raydistill.distill.document_train import document_encoder_artifact, with_trained_encoder
        from raydistill.index.corpus import corpus_artifact

        config = self.config
        corpus = corpus_artifact(config.data, config.index.passages_per_segment, config.root)
        encoder = document_encoder_artifact(config, self._document_turns, self.inputs.train.qrels, corpus)
        return with_trained_encoder(config, encoder)

    def documents(self) -> Artifact:
        """Train the document encoder; only for a configuration that asks for one."""
        from raydistill.distill.document_train import train_documents

        documents = self.settled.index.documents
        assert isinstance(documents, LearnedDocumentsConfig)
        planned, qrels = trained_encoder(documents), self.inputs.train.qrels
        return self._stage(
            "documents",
            lambda: planned.find_manifest() is not None,
            lambda: train_documents(self.config, self._document_turns, qrels, self.corpus),
        )

    def index(self) -> IndexVersion:
        """Encode the corpus into a published index version."""
        from raydistill.index.build import build_index, planned_index

        if self._learns_documents:
            self.documents()
        config, root = self.settled, self.config.root
        return self._stage(
            "index",
            lambda: planned_index(config.index, config.student, self.corpus, root) is not None,
            lambda: build_index(config.index, config.student, self.corpus, root),
        )

    def score(self, number: int = 1) -> Artifact:
        """Mine candidates for the training turns of a round: from the second on, with the student of the round before."""
        from raydistill.index.mine import mine_candidates
        from raydistill.scoring.stage import score_candidates

        # The corpus first: what is wrong with it should show before the teachers are paid.
        _ = self.corpus
        rewrites, index = self.teach()["train"], self.index()
        queries, qrels = list(self.inputs.train.queries()), self.inputs.train.qrels
        planned = self._rounds[number - 1].candidates
        student = self._student(number - 1) if number > 1 else None

        def mine_and_score() -> Artifact:
            mined = mine_candidates(self.settled, queries, qrels, rewrites, index, student)
            return score_candidates(self.config.scorers, mined, rewrites, index, self.config.score.workers)

        return self._stage(stage_name("score", number), lambda: planned.find_manifest() is not None, mine_and_score)

    def mined(self, name: str) -> Artifact:
        """Candidates of the train or the test turns, by teachers and scorers and no student; of test turns, the judged."""
        from raydistill.index.mine import mine_candidates
        from raydistill.scoring.stage import score_candidates

        if name == "train":
            return self.score()
        _ = self.corpus
        found = self.inputs.taught()[name]
        judged = [query for query in found.queries() if found.qrels.get(query.query_id)]
        rewrites, index = self.teach()[name], self.index()
        # Gold passages that nobody retrieved must not join: the rankings are to be measured.
        mined = mine_candidates(self.settled, judged, {}, rewrites, index)
        scorers = [scorer.model_copy(update={"calibrate": False}) for scorer in self.config.scorers]
        return score_candidates(scorers, mined, rewrites, index, self.config.score.workers)

    def train(self) -> Artifact:
        """Distil the student, round after round; return that of the last round. Earlier ones stay."""
        return self._student(self.config.rounds)

    def _student(self, number: int) -> Artifact:
        from raydistill.distill.seeds import train_student

        start = self._student(number - 1) if number > 1 else self._first_start
        if number > 1 and start is not None:
            logger.info("round %d of %d goes on from the student %s", number, self.config.rounds, start.uri)
        candidates, index = self.score(number), self.index()
        planned = self._rounds[number - 1].student
        return self._stage(
            stage_name("train", number),
            lambda: planned.find_manifest() is not None,
            lambda: train_student(self.settled, candidates, index, self.inputs.validation, start),
        )

    @property
    def _first_start(self) -> Artifact | None:
        """What the first round's student starts from: the trained document encoder where asked for, else its own model."""
        documents = self.settled.index.documents
        if isinstance(documents, LearnedDocumentsConfig) and documents.starts_student:
            return trained_encoder(documents)
        return None

    @cached_property
    def _rounds(self) -> list[Round]:
        return self.planned_rounds(self.teach()["train"], self.index())

    def planned_rounds(self, rewrites: Mapping[str, Artifact], index: IndexVersion) -> list[Round]:
        """Return the addresses of every round's candidates and student, computed or not."""
        from raydistill.distill.seeds import planned_student
        from raydistill.index.mine import candidates_artifact
        from raydistill.scoring.stage import scored_artifact

        queries, qrels = list(self.inputs.train.queries()), self.inputs.train.qrels
        rounds: list[Round] = []
        for _ in range(self.config.rounds):
            before = rounds[-1].student if rounds else None
            mined = candidates_artifact(self.settled, queries, qrels, rewrites, index, before)
            candidates = scored_artifact(self.config.scorers, mined, rewrites)
            start = before or self._first_start
            student = planned_student(self.settled, candidates, index, self.inputs.validation, start)
            rounds.append(Round(candidates, student))
        return rounds

    def evaluate(self) -> Artifact:
        """Measure everything on the test turns, write the report, and print the table."""
        from raydistill.evaluation.evaluate import evaluate, evaluation_artifact

        student = self.train()
        rewrites, index = self.teach()["test"], self.index()
        test = self.inputs.test
        inputs = (list(test.queries()), test.qrels, rewrites, index, student, self.config.root)
        planned = evaluation_artifact(self.settled, *inputs)
        evaluation = self._stage(
            "evaluate", lambda: planned.find_manifest() is not None, lambda: evaluate(self.settled, *inputs)
        )
        write_report(self, evaluation, student)
        return evaluation

    def stage_names(self, until: str) -> list[str]:
        """Return the stages up to one of STAGES in the order in which they run, each round's mining and training by name.

        Raises ConfigError for the stage `documents` where no document encoder is to be trained.
        """
        names = ["teach", *(["documents"] if self._learns_documents else []), "index"]
        for number in range(1, self.config.rounds + 1):
            names += [stage_name("score", number), stage_name("train", number)]
        names.append("evaluate")
        last = stage_name("train", self.config.rounds) if until == "train" else until
        if last not in names:
            raise ConfigError(
                f"index.documents.kind is {self.config.index.documents.kind}, so there is no document encoder to train; set "
                "it to learned"
            )
        return names[: names.index(last) + 1]

    def finished_stages(self) -> list[str]:
        """Return the stages that a run would skip, without computing anything or starting Ray."""
        from raydistill.evaluation.evaluate import evaluation_artifact
        from raydistill.index.build import planned_index
        from raydistill.index.corpus import corpus_artifact

        config, root = self.settled, self.config.root
        done: list[str] = []
        rewrites = self.planned_rewrites()
        if all(artifact.find_manifest() is not None for made in rewrites.values() for artifact in made.values()):
            done.append("teach")
        documents = config.index.documents
        if isinstance(documents, LearnedDocumentsConfig):
            if trained_encoder(documents).find_manifest() is None:
                return done
            done.append("documents")
        corpus = corpus_artifact(config.data, config.index.passages_per_segment, root)
        index = planned_index(config.index, config.student, corpus, root)
        if index is None:
            return done
        done.append("index")
        # What follows is named by the index, so it can exist only if the index does.
        rounds = self.planned_rounds(rewrites["train"], index)
        test = (list(self.inputs.test.queries()), self.inputs.test.qrels)
        evaluation = evaluation_artifact(config, *test, rewrites["test"], index, rounds[-1].student, root)
        made = [("evaluate", evaluation)]
        for number, each in enumerate(rounds, start=1):
            made += [(stage_name("score", number), each.candidates), (stage_name("train", number), each.student)]
        return done + [name for name, artifact in made if artifact.find_manifest() is not None]

    # What a run leaves behind, under {root}/runs/{run}.

    @property
    def prefix(self) -> str:
        """Key prefix of the run."""
        return f"runs/{self.config.run}"

    @cached_property
    def fingerprint(self) -> str:
        """Identity of everything in the configuration that changes results, and of the conversations."""
        return fingerprint("run", 1, self.config, {name: found.fingerprint for name, found in self.inputs.all().items()})

    def stage_records(self) -> list[dict[str, Any]]:
        """Return the stage log: {"stage", "seconds", "skipped"} in order of the stages."""
        return read_stages(self.config.root, self.prefix)

    def training_curves(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the training and the validation records of all rounds, steps counted through them."""
        from raydistill.distill.seeds import student_records

        curves: list[dict[str, Any]] = []
        validation: list[dict[str, Any]] = []
        for each in self._rounds:
            before = curves[-1]["step"] if curves else 0
            for joined, found in zip((curves, validation), student_records(self.config, each.student), strict=True):
                joined += [{**record, "step": record["step"] + before} for record in found]
        return curves, validation

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
        log_stage(self.config.root, self.prefix, name, seconds, finished, self.stage_names("evaluate"))
        return result
