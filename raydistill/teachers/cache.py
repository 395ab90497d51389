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
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CorruptObjectError, StorageError, TeacherError
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
_COLUMNS = ", ".join(_SCHEMA.names[1:])
_READERS = 16
_PARTS_AT_ONCE = 4 * _READERS
_PAGES_KIB = 65_536
"""Of the temporary file, in memory."""


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

    They lie in a temporary SQLite file of each process that opens them, so memory is bounded however many there are (64 MiB
    of pages, and the parts that are being read); on disk they take about 100 bytes each and the text.

    Attributes:
        root: run root URI.
        engine: whose generations.
        damaged: parts that were found damaged and removed; their generations are computed again.
    """

    root: str
    engine: EngineIdentity
    damaged: int = 0

    def __post_init__(self) -> None:
        # "": a file that SQLite names, and that is gone with the connection. One thread at a time uses it (see _lock).
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._lock = Lock()
        self._rows.execute(f"PRAGMA cache_size = -{_PAGES_KIB}")
        self._rows.execute("PRAGMA synchronous = OFF")
        columns = ", ".join(name if name != "key" else "key PRIMARY KEY" for name in _SCHEMA.names)
        self._rows.execute(f"CREATE TABLE generations ({columns}) WITHOUT ROWID")
        store = open_store(self.root)
        parts = (info for info in store.list(f"{self._prefix}/") if info.key.endswith(".parquet"))
        with ThreadPoolExecutor(_READERS) as pool:
            while some := list(islice(parts, _PARTS_AT_ONCE)):
                for table in pool.map(lambda info: _read_part(store, info), some):
                    if table is None:
                        self.damaged += 1
                    else:
                        self._insert(zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True))

    def __len__(self) -> int:
        with self._lock:
            return int(self._rows.execute("SELECT count(*) FROM generations").fetchone()[0])

    def find(self, key: str) -> Generation | None:
        """Return the generation of this key, or None."""
        with self._lock:
            found = self._rows.execute(f"SELECT {_COLUMNS} FROM generations WHERE key = ?", (key,)).fetchone()
        return None if found is None else Generation(**dict(zip(_SCHEMA.names[1:], found, strict=True)))

    def add(self, generations: Mapping[str, Generation]) -> None:
        """Keep generations by key, durably once this returns; failed ones are not kept, since nothing was paid for them."""
        new = {key: one for key, one in generations.items() if one.failure is None and self.find(key) is None}
        if not new:
            return
        rows = [{"key": key, **{name: getattr(new[key], name) for name in _SCHEMA.names[1:]}} for key in sorted(new)]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd")
        content = buffer.getvalue()
        open_store(self.root).put_if_absent(f"{self._prefix}/{hashlib.sha256(content).hexdigest()}.parquet", content)
        self._insert(tuple(row.values()) for row in rows)

    def _insert(self, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._lock:
            self._rows.execute("BEGIN")
            try:
                self._rows.executemany("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?, ?)", rows)
                self._rows.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise StorageError(
                    f"the teacher cache's temporary file could not be written ({error}); free space in the temporary "
                    "folder, or set SQLITE_TMPDIR to one that has some"
                ) from error
            finally:
                if self._rows.in_transaction:
                    self._rows.execute("ROLLBACK")

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


def _read_part(store: ObjectStore, info: ObjectInfo) -> pa.Table | None:
    digest = info.key.rpartition("/")[2].removesuffix(".parquet")
    try:
        return pq.read_table(default_cache().fetch(store, info.key, info.size, digest))
    except CorruptObjectError as error:
        # A cache may forget but must not stop the run; gone, the part makes room for the same content put anew.
        logger.warning("a damaged part of the teacher cache is removed: %s", error)
        store.delete(info.key)
        return None
