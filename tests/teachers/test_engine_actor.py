"""Engines in actors of their own: same answers, replaced when they die, ended when they hang, and no place left taken."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util import placement_group_table

from raydistill.config import VllmTeacherConfig
from raydistill.conversations.records import ConversationalQuery
from raydistill.errors import ResourceError, TeacherError
from raydistill.teachers.engine import Engine, EngineDiedError, Generation, Sampling
from raydistill.teachers.engine_actor import EngineActor, remove_groups, require_places
from raydistill.teachers.pool import teach
from raydistill.teachers.transformers_engine import ModelTokenizer, TransformersEngine

# Workers cannot import tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROMPTS = ["user: who built it?\nrewrite:", "and when?"]
GREEDY = Sampling(max_new_tokens=8)
ONE_CPU = [{"CPU": 1.0}]


class Moody:
    """An engine that dies a number of times before it answers, over all its lives; a file counts."""

    def __init__(self, lives: Path, deaths: int, by_signal: bool) -> None:
        self.lives, self.deaths, self.by_signal = lives, deaths, by_signal

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        with self.lives.open("a") as stream:
            stream.write("x")
        if len(self.lives.read_text()) <= self.deaths:
            if self.by_signal:
                os.kill(os.getpid(), signal.SIGKILL)
            raise EngineDiedError("the core is gone")
        return [Generation(prompt.upper(), 1, 1, "stop") for prompt in prompts]


class Sleeper:
    """An engine that hangs."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        time.sleep(3600)
        return []


class Refuser:
    """An engine that cannot be loaded."""

    def __init__(self) -> None:
        raise TeacherError("teacher model x cannot be loaded; correct its name")

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        return []


@pytest.fixture
def group(ray_cluster: None) -> Iterator[str]:
    """A prefix of placement groups; after the test none of that name may be left."""
    name = f"group-{time.monotonic_ns()}"
    yield name
    assert states(name) <= {"REMOVED"}


def states(prefix: str) -> set[str]:
    return {entry["state"] for entry in placement_group_table().values() if entry["name"].startswith(prefix)}


def loaded(folder: str) -> Engine:
    return TransformersEngine(folder, ModelTokenizer(folder), dtype="float32", device="cpu")


def test_an_engine_elsewhere_answers_as_here_and_again_after_its_process_was_killed(group: str, tiny_causal: str) -> None:
    engine = loaded(tiny_causal)
    here, chosen = engine.generate(PROMPTS, GREEDY), engine.choose(PROMPTS, ["a", "b"])
    elsewhere = EngineActor(partial(loaded, tiny_causal), ONE_CPU, group, deadline_s=300)
    assert elsewhere.generate(PROMPTS, GREEDY) == here
    np.testing.assert_allclose(elsewhere.choose(PROMPTS, ["a", "b"]).log_probabilities, chosen.log_probabilities, atol=1e-5)
    first = elsewhere.process_id()
    assert first != os.getpid()
    os.kill(first, signal.SIGKILL)
    assert elsewhere.generate(PROMPTS, GREEDY) == here
    assert elsewhere.process_id() != first
    assert states(group) == {"CREATED", "REMOVED"}
    elsewhere.close()


@pytest.mark.parametrize("by_signal", [True, False], ids=["killed", "lost"])
def test_an_engine_that_dies_again_and_again_is_given_up_and_its_place_returned(
    group: str, tmp_path: Path, by_signal: bool
) -> None:
    twice = EngineActor(partial(Moody, tmp_path / "two", 2, by_signal), ONE_CPU, group, deadline_s=300)
    assert [one.text for one in twice.generate(["a"], GREEDY)] == ["A"]
    twice.close()
    always = EngineActor(partial(Moody, tmp_path / "all", 9, by_signal), ONE_CPU, group, deadline_s=300)
    with pytest.raises(TeacherError, match=r"the engine died 3 times on the same prompts \("):
        always.generate(["a"], GREEDY)
    assert len((tmp_path / "all").read_text()) == 3


def test_an_engine_that_hangs_is_ended(group: str) -> None:
    with pytest.raises(TeacherError, match=r"gave no answer within 2 s and was ended; raise the teacher's answer_timeout_s"):
        EngineActor(Sleeper, ONE_CPU, group, deadline_s=2).generate(["a"], GREEDY)


def test_an_engine_that_cannot_be_loaded_says_why(group: str) -> None:
    with pytest.raises(TeacherError, match=r"^teacher model x cannot be loaded; correct its name$"):
        EngineActor(Refuser, ONE_CPU, group, deadline_s=300).generate(["a"], GREEDY)


def test_no_room_ends_in_a_sentence_and_leaves_nothing_waiting(group: str) -> None:
    with pytest.raises(ResourceError, match=r"no node had room for .*'GPU': 1.* within 1 s; lower the teacher's tensor_par"):
        EngineActor(Sleeper, [{"GPU": 1.0}] * 2, group, deadline_s=9, place_within_s=1).generate(["a"], GREEDY)


def test_groups_are_removed_by_name(group: str, tmp_path: Path) -> None:
    EngineActor(partial(Moody, tmp_path / "x", 0, False), ONE_CPU, group, deadline_s=300).generate(["a"], GREEDY)
    remove_groups(f"{group}-of-another")
    assert states(group) == {"CREATED"}
    remove_groups(group)
    assert states(group) == {"REMOVED"}


def test_the_place_of_an_engine_whose_maker_was_killed_goes_to_the_next_that_waits_for_it(
    group: str, tmp_path: Path
) -> None:
    def make() -> EngineActor:
        # Two of them do not fit the cluster.
        return EngineActor(partial(Moody, tmp_path / "x", 0, False), [{"CPU": 2.0}], group, deadline_s=300)

    class Maker:
        def start(self) -> None:
            self.engine = make()
            self.engine.generate(["a"], GREEDY)

    maker = ray.remote(num_cpus=0)(Maker).remote()
    ray.get(maker.start.remote())
    ray.kill(maker)
    following = make()
    assert [one.text for one in following.generate(["b"], GREEDY)] == ["B"]
    following.close()


def test_tensor_parallelism_is_checked_against_the_nodes_before_anything_starts(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"teachers\[big\]\.tensor_parallel_size is 2, and no node has more than 0 GPU"):
        require_places(1, 2, "big")
    query = ConversationalQuery("a<::>1", "a", 1, "who?", ())
    teacher = VllmTeacherConfig(name="big", model="a/model", revision="c0ffee", tensor_parallel_size=2)
    with pytest.raises(ResourceError, match=r"teachers\[big\]\.tensor_parallel_size is 2"):
        teach(teacher, [query], "f" * 64, str(tmp_path))
