"""An engine in a Ray actor of its own, on a placement group of its own: for engines that spread over several GPUs.

The group holds one bundle a GPU on one node; the engine's actor runs in the first, and whatever it starts (the workers of
tensor parallelism) in the others. It is removed by `close`, and by `remove_groups` on the driver when the stage is over. Ray
itself keeps the group of an actor that was killed until the job ends; so whoever waits for room removes groups whose engine
is gone.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import get_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydistill.errors import ResourceError, TeacherError
from raydistill.teachers.engine import Choices, Engine, EngineDiedError, Generation, Sampling

_LIVES = 3
"""How often an engine is started for one call before the call is given up: a prompt may be what kills it."""
_LOOK_EVERY_S = 2.0


class EngineActor:
    """An engine, by the protocol of engines, that another process runs and that is replaced when it dies or hangs."""

    def __init__(
        self,
        make: Callable[[], Engine],
        bundles: Sequence[Mapping[str, float]],
        group_name: str,
        deadline_s: float,
        place_within_s: float = 600.0,
    ) -> None:
        """Start nothing yet.

        Args:
            make: makes the engine, in the actor; picklable.
            bundles: resources of each bundle; the actor takes those of the first when it is the only one, else none, so that
                the engine's workers can.
            group_name: prefix of the placement groups' names, for `remove_groups`.
            deadline_s: for one call of `generate`; an engine that takes longer counts as hung.
            place_within_s: for the cluster to have room.
        """
        self._make, self._bundles, self._group_name = make, [dict(each) for each in bundles], group_name
        self._deadline_s, self._place_within_s = deadline_s, place_within_s
        self._group: Any = None
        self._actor: Any = None

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        """Generate with the engine. Raises TeacherError when it fails, dies again and again, or hangs; ResourceError when
        the cluster has no room."""
        made: list[Generation] = self._answer("generate", list(prompts), sampling)
        return made

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> Choices:
        """Choose with the engine. Raises as `generate`."""
        made: Choices = self._answer("choose", list(prompts), list(options))
        return made

    def _answer(self, call: str, *arguments: Any) -> Any:
        reason = ""
        for _ in range(_LIVES):
            if self._actor is None:
                self._start()
            try:
                answer = ray.get(self._actor.answer.remote(call, *arguments), timeout=self._deadline_s)
            except GetTimeoutError:
                self.close()
                raise TeacherError(
                    f"the engine gave no answer within {self._deadline_s:g} s and was ended; raise the teacher's "
                    "answer_timeout_s, or give it fewer turns_per_task"
                ) from None
            except RayActorError as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:300]
                self.close()
                continue
            if not isinstance(answer, tuple):
                return answer
            reason, died = answer
            if not died:
                self.close()
                raise TeacherError(reason)
            self.close()
        raise TeacherError(
            f"the engine died {_LIVES} times on the same prompts ({reason}); lower max_prompt_tokens, or "
            "take a model or precision that needs less memory"
        )

    def process_id(self) -> int:
        """Return the process that runs the engine."""
        if self._actor is None:
            self._start()
        return int(ray.get(self._actor.process_id.remote()))

    def close(self) -> None:
        """End the engine and give its place back."""
        actor, group, self._actor, self._group = self._actor, self._group, None, None
        try:
            if actor is not None:
                ray.kill(actor)
        finally:
            if group is not None:
                remove_placement_group(group)

    def _start(self) -> None:
        name = f"{self._group_name}-{uuid.uuid4().hex[:8]}"
        self._group = placement_group(self._bundles, strategy="STRICT_PACK", name=name)
        try:
            self._wait_for_room(name)
            alone = self._bundles[0] if len(self._bundles) == 1 else {}
            self._actor = (
                ray.remote(_Host)
                .options(
                    name=name,
                    num_cpus=alone.get("CPU", 0),
                    num_gpus=alone.get("GPU", 0),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
                    ),
                )
                .remote(self._make)
            )
        except BaseException:
            self.close()
            raise

    def _wait_for_room(self, name: str) -> None:
        deadline = time.monotonic() + self._place_within_s
        while not self._group.wait(min(_LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"no node had room for {self._bundles} within {self._place_within_s:g} s; lower the teacher's "
                    "tensor_parallel_size or workers.actors, or add nodes"
                )
            _remove_orphans(self._group_name, but=name)


def _remove_orphans(prefix: str, but: str) -> None:
    """Remove the placement groups of a prefix whose engine, an actor of the group's name, is gone with its maker."""
    for entry in placement_group_table().values():
        name = entry["name"]
        if name.startswith(prefix) and name != but and entry["state"] == "CREATED":
            try:
                ray.get_actor(name)
            except ValueError:
                _remove(name)


def remove_groups(prefix: str) -> None:
    """Remove every placement group whose name begins with a prefix, whoever made it."""
    for entry in placement_group_table().values():
        if entry["name"].startswith(prefix) and entry["state"] != "REMOVED":
            _remove(entry["name"])


def _remove(name: str) -> None:
    with suppress(ValueError):  # gone meanwhile
        remove_placement_group(get_placement_group(name))


def require_places(replicas: int, gpus: int, teacher: str) -> None:
    """Raise ResourceError when the cluster cannot hold that many engines of so many GPUs, each on one node."""
    nodes = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    largest, places = max(nodes, default=0), sum(number // gpus for number in nodes)
    if gpus > largest:
        raise ResourceError(
            f"teachers[{teacher}].tensor_parallel_size is {gpus}, and no node has more than {largest} GPU; lower it, or add "
            "a node with more"
        )
    if replicas > places:
        raise ResourceError(
            f"teachers[{teacher}].workers asks for {replicas} engines of {gpus} GPU, and the cluster has room for {places}; "
            "lower workers.actors or tensor_parallel_size, or add nodes"
        )


class _Host:
    """The actor's side. Errors of ours travel as data, since Ray would wrap them into its own."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None

    def answer(self, call: str, *arguments: Any) -> list[Generation] | Choices | tuple[str, bool]:
        """Return what the engine's method gives, or the reason why it gives nothing and whether the engine is lost."""
        try:
            if self._engine is None:
                self._engine = self._make()
            made: list[Generation] | Choices = getattr(self._engine, call)(*arguments)
            return made
        except EngineDiedError as error:
            return str(error), True
        except TeacherError as error:
            return str(error), False
        except Exception as error:
            # Nobody foresaw it, so nobody knows what state the engine is in.
            return " ".join(f"{type(error).__name__}: {error}".split())[:300], True

    def process_id(self) -> int:
        """Return this process's number."""
        return os.getpid()
