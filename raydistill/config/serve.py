"""Searching an index with many actors, and the service over HTTP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raydistill.config.chain import RayConfig
from raydistill.config.fields import Location, ModelSource, Name, NonNegativeFloat, NonNegativeInt, Section, WorkerConfig
from raydistill.config.rerank import RerankConfig


class FanOutConfig(Section):
    """The actors that hold an index together: each maps a group of its segments."""

    workers: WorkerConfig = WorkerConfig()
    """`actors` groups of about equal bytes; `cpus` threads search a batch in each."""
    retries: NonNegativeInt = 8
    """How often what was asked of an actor that died is asked again of the one in its place."""
    timeout_s: PositiveFloat = 120.0
    """Seconds to wait for an answer; a node's loss takes Ray some 15 to notice."""
    open_timeout_s: PositiveFloat = 3600.0
    """Seconds to wait until all segments of a version are fetched and verified."""
    versions: Annotated[int, Field(ge=2)] = 2
    """Versions that an actor keeps mapped; an older one that is still asked for is mapped again."""
    texts: bool = True
    """Keep the passages' texts beside the segments: on each node about their length on disk. False answers without texts."""


class HttpConfig(Section):
    """Where the service listens, and how much it takes from a client."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of the machine's. There is no authentication: put a gateway before it."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port."""
    body_bytes: PositiveInt = 1_000_000
    """Largest body of a request."""
    utterances: PositiveInt = 400
    """Most utterances of a conversation."""
    utterance_characters: PositiveInt = 20_000
    """Longest utterance."""
    k: PositiveInt = 1000
    """Most passages that a request may ask for."""
    timeout_s: PositiveFloat = 300.0
    """Seconds after which a request is given up."""


class ReplicasConfig(Section):
    """The processes that answer HTTP requests and encode queries; each loads the student once."""

    workers: WorkerConfig = WorkerConfig()
    """`actors` replicas; `cpus` compute threads of each."""
    batch: PositiveInt = 16
    """Most requests that are encoded and searched together."""
    batch_wait_ms: NonNegativeFloat = 1.0
    """Milliseconds that a request waits for others."""


class InspectConfig(Section):
    """The page at /inspect: a conversation's rewrites, the students' terms, what each finds and why."""

    run: Location | None = None
    """YAML file of a run: its turns can be picked, with its teachers' rewrites and its judged passages. None: only typed
    conversations, through the students."""
    students: dict[Name, ModelSource] = Field(default_factory=dict)
    """Further students by name, shown beside the served one; each as `student` is."""
    k: PositiveInt = 20
    """Most passages shown of a view."""


class ServeConfig(Section):
    """A search service: one student, one index, over HTTP."""

    root: Location
    """Run root that holds the index."""
    index: Name
    """Name of the index; its current version is served, and the next one when that is published."""
    student: ModelSource
    """The query encoder: a folder that training wrote, or the address of a student artifact (s3://…/artifacts/student/…)."""
    name: Name = "raydistill"
    """Name of the service in the cluster; starting one of the same name replaces it."""
    http: HttpConfig = HttpConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    fan_out: FanOutConfig = FanOutConfig()
    rerank: RerankConfig | None = None
    """A second stage: a cross-encoder orders the best passages anew. None leaves it out."""
    inspect: InspectConfig | None = InspectConfig()
    """The page for looking at conversations. None leaves it out."""
    poll_s: PositiveFloat = 10.0
    """Seconds between looks for a newly published version."""
    trust_remote_code: bool = False
    """Let the student's own Python code run."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _reranked_have_texts(self) -> ServeConfig:
        if self.rerank is not None and not self.fan_out.texts:
            raise ValueError(
                "rerank needs the passages' texts, and fan_out.texts is false; set it to true, or leave rerank out"
            )
        return self
