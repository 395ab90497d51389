"""What a run reads: conversation sets, recorded rewrites, and the checks between them. No stage, and nothing is computed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice

from raydistill.config import (
    IN_CONVERSATIONS,
    ConversationSource,
    DistillConfig,
    InfoNce,
    MarginMse,
    RecordedTeacherConfig,
    TeacherConfig,
)
from raydistill.conversations.readers import read_conversations
from raydistill.conversations.records import ConversationalQuery, ConversationSet
from raydistill.conversations.text import history_pairs
from raydistill.conversations.training import read_training, turn_identities
from raydistill.errors import DataError
from raydistill.storage.artifacts import fingerprint
from raydistill.teachers.engines import shows_answer, shows_facts
from raydistill.teachers.recorded import RecordedRewrites, known_nothing, recorded_rewrites

logger = logging.getLogger("raydistill")


class RunInputs:
    """The conversations and recorded rewrites of a configuration, each read once."""

    def __init__(self, config: DistillConfig) -> None:
        self._config = config

    @cached_property
    def _training(self) -> tuple[ConversationSet, ConversationSet | None]:
        return read_training(self._config.data)

    @property
    def train(self) -> ConversationSet:
        """The training conversations of all sources, without those held out for validation."""
        return self._training[0]

    @property
    def validation(self) -> ConversationSet | None:
        """The held-out conversations; None when no validation is asked for. No teacher rewrites them."""
        return self._training[1]

    @cached_property
    def test(self) -> ConversationSet:
        """The test conversations."""
        data = self._config.data
        return read_conversations(data.test, data.reader, data.max_bad_rows)

    def taught(self) -> dict[str, ConversationSet]:
        """The sets that teachers rewrite, by name. Ids are unique within a set only, so the two are never mixed."""
        return {"train": self.train, "test": self.test}

    def all(self) -> dict[str, ConversationSet]:
        """Every set of conversations by name."""
        return {**self.taught(), **({"validation": self.validation} if self.validation is not None else {})}

    @cached_property
    def recorded(self) -> dict[str, dict[str, RecordedRewrites]]:
        """Set name -> name of each recorded teacher -> what it knows of the set."""
        return {
            name: {each.name: recorded_rewrites(each.rewrites, found.queries()) for each in self._recorded_teachers()}
            for name, found in self.taught().items()
        }

    def _recorded_teachers(self) -> list[RecordedTeacherConfig]:
        return [each for each in self._config.teachers if isinstance(each, RecordedTeacherConfig)]

    def teachers_of(self, name: str) -> list[TeacherConfig]:
        """Return the teachers that have a rewrite of at least one turn of a set: recorded ones may cover one set only."""
        known = self.recorded[name]
        return [
            each
            for each in self._config.teachers
            if not isinstance(each, RecordedTeacherConfig) or known[each.name].raw or known[each.name].held
        ]

    def asked_of(self, name: str, teacher: TeacherConfig) -> list[ConversationalQuery]:
        """Return the turns of a set as a teacher is to see them: with the user's facts where its prompts show them, and with
        the answers where its prompts show those and nothing is measured on the turns."""
        answers = name == "train" and shows_answer(teacher)
        facts = shows_facts(teacher)
        return [
            replace(query, answer=query.answer if answers else "", facts=query.facts if facts else ())
            for query in self.taught()[name].queries()
        ]

    def turns_fingerprint(self, name: str, teacher: TeacherConfig) -> str:
        """Return the identity of what a teacher reads of a set: ids, questions, histories; rewrites, answers and facts if it
        takes them."""
        held = isinstance(teacher, RecordedTeacherConfig) and IN_CONVERSATIONS in teacher.rewrites
        turns = self._turns_fingerprints[name, held]
        if not (shows_answer(teacher) or shows_facts(teacher)):
            return turns
        shown = [[query.answer, query.facts] for query in self.asked_of(name, teacher)]
        return fingerprint("turns", 1, shown, {"turns": turns}) if any(map(any, shown)) else turns

    @cached_property
    def _turns_fingerprints(self) -> dict[tuple[str, bool], str]:
        made = {}
        for name, found in self.taught().items():
            turns = [[query.query_id, query.question, history_pairs(query)] for query in found.queries()]
            made[name, False] = fingerprint("turns", 1, turns, {})
            rewrites = [query.rewrite for query in found.queries()]
            made[name, True] = fingerprint("turns", 1, rewrites, {"turns": made[name, False]})
        return made

    def judgements(self) -> dict[str, dict[str, Mapping[str, int]]]:
        """Return the judgements of all sets by the file that they come from: URI -> query id -> passage id -> grade.

        Passages that conversations were made of are in the corpus and are left out.
        """
        data = self._config.data
        files = {
            source.name or "": source.qrels or source.conversations
            for source in data.train
            if isinstance(source, ConversationSource)
        }
        own = [(data.test, self.test)]
        shared = [self.train]
        if isinstance(data.validation, ConversationSource) and self.validation is not None:
            own.append((data.validation, self.validation))
        elif self.validation is not None:
            shared.append(self.validation)
        judged: dict[str, dict[str, Mapping[str, int]]] = {}
        for found in shared:
            for query in found.queries():
                if query.query_id in found.qrels and query.source in files:
                    judged.setdefault(files[query.source], {})[query.query_id] = found.qrels[query.query_id]
        for source, found in own:
            judged.setdefault(source.qrels or source.conversations, {}).update(found.qrels)
        return judged

    # Checks.

    def check(self) -> None:
        """Raise DataError when the sets or the recorded rewrites cannot work; warn of what would surprise."""
        for found in self.all().values():
            for place, reason in found.quarantined:
                logger.warning("left out: %s: %s", place, reason)
            for note in found.notes:
                logger.warning("%s", note)
        self._check_judgements()
        self._check_ids()
        for teacher in self._recorded_teachers():
            if not any(teacher in self.teachers_of(name) for name in self.taught()):
                queries = [query for found in self.taught().values() for query in found.queries()]
                raise DataError(f"teacher {teacher.name}: {known_nothing(teacher.rewrites, queries)}")
        training = {each.name for each in self.teachers_of("train")}
        for scorer in self._config.scorers:
            if scorer.query not in training and scorer.query in {each.name for each in self._config.teachers}:
                raise DataError(
                    f"scorers.{scorer.name}.query is the teacher {scorer.query!r}, which has a rewrite of no training turn; "
                    "take another, or add its rewrites"
                )
            training.add(scorer.name)
        idle = [name for name in self._config.train.objective.teacher_names if name not in training]
        if idle:
            raise DataError(
                f"train.objective names the teacher {idle[0]!r}, which has a rewrite of no training turn; take another, or "
                "add its rewrites"
            )
        self._check_gold()
        if len(self._recorded_teachers()) == len(self._config.teachers):
            self._check_coverage()

    def _check_gold(self) -> None:
        """Raise DataError where something learns from gold passages and no training turn has one."""
        if any(grade > 0 for grades in self.train.qrels.values() for grade in grades.values()):
            return
        for _, term in self._config.train.objective.terms:
            if isinstance(term, InfoNce) or (isinstance(term, MarginMse) and term.pairs == "gold"):
                raise DataError(
                    f"train.objective has {term}, which learns from gold passages, and no training turn has one; add qrels "
                    "to a source of data.train, or leave the term out"
                )
        for scorer in self._config.scorers:
            if scorer.calibrate:
                raise DataError(
                    f"scorers.{scorer.name}.calibrate learns from gold passages, and no training turn has one; add qrels to "
                    "a source of data.train, or set calibrate: false"
                )

    def _check_judgements(self) -> None:
        data = self._config.data
        for name, source, found in (("test", data.test, self.test), ("validation", data.validation, self.validation)):
            if found is not None and not any(found.qrels.values()):
                place = f" ({source.qrels or source.conversations})" if isinstance(source, ConversationSource) else ""
                raise DataError(
                    f"no turn of data.{name} has a judgement{place}, so nothing could be measured; check data.{name}.qrels "
                    f"and data.{name}.split"
                )

    def _check_ids(self) -> None:
        """Warn of turns in two sets; raise DataError where one id means two turns and rewrites are looked up by id."""
        test = {query.query_id: query.question for query in self.test.queries()}
        known = {identity for each in self.test.conversations for _, own in turn_identities(each) for identity in own}
        for name, effect in (("train", "scores will flatter the student"), ("validation", "it is chosen by test turns")):
            found = self.all().get(name)
            if found is None:
                continue
            turns = [pair for each in found.conversations for pair in islice(turn_identities(each), each.asked_before, None)]
            same = sum(not known.isdisjoint(own) for _, own in turns)
            if same:
                logger.warning("%d turns are in data.%s and in data.test: %s", same, name, effect)
            other = [turn.query_id for turn, _ in turns if test.get(turn.query_id, turn.question) != turn.question]
            if name == "train" and other and self._recorded_teachers():
                raise DataError(
                    f"query id {min(other)!r} names one turn in data.train and another in data.test, and recorded rewrites "
                    "are found by id; set prefix_ids: true in one of the sources, or give their turns ids of their own"
                )

    def _check_coverage(self) -> None:
        """Count, for each training source, the turns that no recorded teacher has a rewrite of; they teach nothing."""
        known = list(self.recorded["train"].values())
        turns = Counter(query.source for query in self.train.queries())
        lacking = Counter(
            query.source for query in self.train.queries() if not any(query.query_id in each for each in known)
        )
        if sum(lacking.values()) == sum(turns.values()):
            raise DataError(
                f"no teacher has a rewrite of any of the {sum(turns.values())} training turns; check the teachers' rewrites "
                "and data.train"
            )
        for source, count in lacking.items():
            place = f"training source {source}" if source else "data.train"
            if count == turns[source]:
                logger.warning("%s: no teacher has a rewrite of any of its %d turns, so it teaches nothing", place, count)
            else:
                logger.warning("%s: %d of %d turns have no rewrite and are left out", place, count, turns[source])
        if not self.teachers_of("test"):
            logger.warning("no teacher has a rewrite of a test turn: the report compares the student with baselines only")
