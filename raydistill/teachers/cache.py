"""Generations kept by what decides them, so that one that was paid for is never computed again: not by another run of the
same root, not after a crash. Knows engines' results, not prompts or queries.

    {root}/cache/teachers/{engine key}/{SHA-256 of the content}.parquet

A part holds the generations of one call. Parts are only ever added, under the name of their content, so any number of
writers may share a folder; readers see whichever parts are there when they start.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CorruptObjectError, TeacherError
from raydistill.storage.cache import default_cache
from raydistill.storage.store import ObjectInfo, ObjectStore, open_store
from raydistill.teachers.engine import Engine, EngineStoppedError, Generation, Sampling

logger = logging.getLogger("raydistill")

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("generated_tokens", pa.int32()),
        ("finish_reason", pa.string()),
    ]
)
_READERS = 16


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What decides an engine's answers beside prompt and sampling; hashed into its folder's name.

    Attributes:
        model: see `model_source.model_identity`; of an endpoint what `engines.engine_identity` says.
        dtype: as configured; "" of an endpoint, which has its own.
    """

    model: str
    dtype: str

    @property
    def key(self) -> str:
        """64 hex characters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def generation_key(engine: EngineIdentity, prompt_version: str, sampling: Sampling, prompt: str) -> str:
    """Return the name of a generation before it is made: SHA-256 over everything that decides it, 64 hex characters."""
    parts = [engine.key, prompt_version, asdict(sampling), prompt]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class GenerationCache:
    """The generations of one engine under a run root; loaded once, then extended by what this process adds.

    Attributes:
        root: run root URI.
        engine: whose generations.
        damaged: parts that were found damaged and removed; their generations are computed again.
    """

    root: str
    engine: EngineIdentity
    damaged: int = 0
    _known: dict[str, Generation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store = open_store(self.root)
        parts = [info for info in store.list(f"{self._prefix}/") if info.key.endswith(".parquet")]
        with ThreadPoolExecutor(_READERS) as pool:
            for generations in pool.map(lambda info: _read_part(store, info), parts):
                if generations is None:
                    self.damaged += 1
                else:
                    self._known.update(generations)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> Generation | None:
        """Return the generation of this key, or None."""
        return self._known.get(key)

    def add(self, generations: Mapping[str, Generation]) -> None:
        """Keep generations by key, durably once this returns; failed ones are not kept, since nothing was paid for them."""
        new = {key: one for key, one in generations.items() if one.failure is None and key not in self._known}
        if not new:
            return
        rows = [{"key": key, **{name: getattr(new[key], name) for name in _SCHEMA.names[1:]}} for key in sorted(new)]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd")
        content = buffer.getvalue()
        open_store(self.root).put_if_absent(f"{self._prefix}/{hashlib.sha256(content).hexdigest()}.parquet", content)
        self._known.update(new)

    @property
    def _prefix(self) -> str:
        return f"cache/teachers/{self.engine.key[:32]}"


def cached_generate(
    engine: Engine, cache: GenerationCache, prompt_version: str, prompts: Sequence[str], sampling: Sampling
) -> tuple[list[Generation], int]:
    """Return one generation a prompt, in order, and how many came from the cache; only the missing ones reach the engine.

    A prompt that occurs twice is generated once. What an engine answered before it stopped is kept; then TeacherError is
    raised.
    """
    keys = [generation_key(cache.engine, prompt_version, sampling, prompt) for prompt in prompts]
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if cache.find(key) is None}
    made: dict[str, Generation] = {}
    if missing:
        try:
            made = dict(zip(missing, engine.generate(list(missing.values()), sampling), strict=True))
        except EngineStoppedError as stopped:
            cache.add(dict(zip(missing, stopped.generations, strict=True)))
            raise TeacherError(str(stopped)) from stopped
    cache.add(made)
    answers = [made.get(key) or cache.find(key) for key in keys]
    return [answer for answer in answers if answer is not None], sum(key not in missing for key in keys)


def _read_part(store: ObjectStore, info: ObjectInfo) -> dict[str, Generation] | None:
    digest = info.key.rpartition("/")[2].removesuffix(".parquet")
    try:
        table = pq.read_table(default_cache().fetch(store, info.key, info.size, digest))
    except CorruptObjectError as error:
        # A cache may forget but must not stop the run; gone, the part makes room for the same content put anew.
        logger.warning("a damaged part of the teacher cache is removed: %s", error)
        store.delete(info.key)
        return None
    return {row.pop("key"): Generation(**row) for row in table.to_pylist()}
