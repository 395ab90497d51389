"""Artifacts: the immutable outputs of stages, named by a fingerprint of everything that decides their content.

    {root}/artifacts/{kind}/{name}-{fingerprint[:16]}/{part}-{sha8}{suffix}   the parts
                                                     _receipts/{part}.json     which object of a part counts
                                                     _manifest.json            written last: the artifact exists

Readers follow the manifest and nothing else. How single parts are put is in `parts`; index versions, which move, are in
raydistill.index.publish.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raydistill.config import result_fields
from raydistill.errors import CorruptObjectError, StorageError
from raydistill.storage.cache import default_cache
from raydistill.storage.hashing import canonical_json, sealed, sha256_hex, unsealed
from raydistill.storage.parts import Part, PartLedger, chosen_parts
from raydistill.storage.store import ObjectStore, open_store

__all__ = ["Artifact", "ArtifactWriter", "Manifest", "Part", "fingerprint", "tool_versions"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TOOLS = ("raydistill", "ray", "torch", "transformers", "pyarrow", "numpy")


def fingerprint(kind: str, format_version: int, settings: Any, inputs: Mapping[str, str]) -> str:
    """Return the name of a result before it is computed: SHA-256 over canonical JSON, 64 hex characters.

    Args:
        kind: kind of artifact.
        format_version: raised when the code changes what it writes for the same settings.
        settings: configuration models, dataclasses, dictionaries, lists and scalars, nested at will; operational
            fields of models (see raydistill.config) do not count.
        inputs: name -> fingerprint of everything that is read.

    Raises:
        StorageError: settings hold something without a JSON form.
    """
    document = {"kind": kind, "format": format_version, "settings": _plain(settings), "inputs": dict(inputs)}
    return sha256_hex(canonical_json(document).encode())


def _plain(value: Any) -> Any:
    """Return models, dataclasses and containers as plain structures, operational fields left out."""
    if isinstance(value, BaseModel):
        return _plain(result_fields(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spot.name: _plain(getattr(value, spot.name)) for spot in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@lru_cache(maxsize=1)
def tool_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results, by name."""
    versions = {"python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = packages.version(tool)
        except packages.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Manifest:
    """What a committed artifact consists of.

    Attributes:
        kind, name, fingerprint: of the artifact.
        parts: in the order in which they were committed.
        metadata: what the stage tells its readers; JSON values.
        created: UTC time, ISO 8601.
        tool_versions: package -> version that wrote it.
        operation_id: unique to the commit, so that a writer recognises its own after a lost answer.
    """

    kind: str
    name: str
    fingerprint: str
    parts: tuple[Part, ...]
    metadata: Mapping[str, Any]
    created: str
    tool_versions: Mapping[str, str]
    operation_id: str

    @property
    def rows(self) -> int:
        """Rows of all parts together."""
        return sum(part.rows for part in self.parts)

    @property
    def counters(self) -> dict[str, float]:
        """Counters summed over the parts."""
        total: dict[str, float] = {}
        for part in self.parts:
            for name, count in part.counters.items():
                total[name] = total.get(name, 0) + count
        return total

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a dictionary that JSON can hold."""
        fields = {spot.name: getattr(self, spot.name) for spot in dataclasses.fields(self)}
        return {**fields, "parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Manifest:
        """Return the manifest that `to_json` described."""
        return cls(**{**fields, "parts": tuple(Part.from_json(part) for part in fields["parts"])})


@dataclass(frozen=True)
class Artifact:
    """The address of an artifact, committed or not; small, picklable, and safe to hand to Ray workers."""

    root: str
    kind: str
    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        for text in (self.kind, self.name):
            if not _NAME.fullmatch(text):
                raise StorageError(
                    f"{text!r} cannot name an artifact: use letters, digits and . _ - after a letter or digit"
                )
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise StorageError(
                f"{self.fingerprint!r} is no fingerprint: pass the 64 hex characters that fingerprint() returns"
            )

    @property
    def prefix(self) -> str:
        """Key prefix of everything the artifact has, without trailing slash."""
        return f"artifacts/{self.kind}/{self.name}-{self.fingerprint[:16]}"

    @property
    def uri(self) -> str:
        """Where the artifact lies."""
        return f"{self.root.rstrip('/')}/{self.prefix}"

    @property
    def store(self) -> ObjectStore:
        """The store of the run root."""
        return open_store(self.root)

    def find_manifest(self) -> Manifest | None:
        """Return the manifest, or None while the artifact is not committed.

        Raises:
            CorruptObjectError: the manifest is damaged or belongs to another fingerprint.
        """
        store, key = self.store, f"{self.prefix}/_manifest.json"
        if store.info(key) is None:
            return None
        manifest = Manifest.from_json(unsealed(store.read(key), f"{store.root}/{key}"))
        if manifest.fingerprint != self.fingerprint:
            raise CorruptObjectError(
                f"{store.root}/{key} belongs to {manifest.fingerprint}, not to {self.fingerprint}; delete it"
            )
        return manifest

    def manifest(self) -> Manifest:
        """Return the manifest. Raises StorageError when the artifact is not committed."""
        manifest = self.find_manifest()
        if manifest is None:
            raise StorageError(f"{self.uri} is not complete (it has no _manifest.json); run the stage that makes it")
        return manifest

    def part(self, name: str) -> Part:
        """Return one part; reads the whole manifest, so hold `manifest()` to look up many. Raises StorageError if absent."""
        for part in self.manifest().parts:
            if part.name == name:
                return part
        raise StorageError(f"{self.uri} has no part {name!r}")

    def fetch(self, part: Part) -> Path:
        """Return a local, read-only file with the part's content, its SHA-256 verified once a process.

        Raises:
            CorruptObjectError: the stored bytes are not the committed ones.
        """
        return default_cache().fetch(self.store, part.key, part.size, part.sha256)

    def to_json(self) -> dict[str, str]:
        """Return the address as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> Artifact:
        """Return the artifact that `to_json` described."""
        return cls(fields["root"], fields["kind"], fields["name"], fields["fingerprint"])


@dataclass(frozen=True)
class ArtifactWriter:
    """Writes an artifact: many workers put parts at once, one of them (or several, it does no harm) commits. Picklable."""

    artifact: Artifact

    @property
    def _ledger(self) -> PartLedger:
        prefix = self.artifact.prefix
        return PartLedger(self.artifact.root, prefix, f"{prefix}/_receipts")

    def finished(self) -> dict[str, Part]:
        """Return the parts that need not be made again, by name."""
        committed = self.artifact.find_manifest()
        if committed is not None:
            return {part.name: part for part in committed.parts}
        return self._ledger.finished()

    def put_part(
        self, name: str, content: bytes | Path, suffix: str, rows: int, counters: Mapping[str, float] | None = None
    ) -> Part:
        """Store one part and its receipt, and return the part that counts (another worker's if that one was first).

        Args:
            name: of the part; letters, digits and . _ = -.
            content: bytes, or a local file that stays unchanged meanwhile and still belongs to the caller.
            suffix: of the object's name, for instance ".parquet".
            rows: rows that the part holds.
            counters: whatever the stage counts, summed in the manifest.

        Raises:
            CorruptObjectError: the store holds other bytes under this content's name.
        """
        return self._ledger.put(name, content, suffix, rows, counters or {})

    def commit(self, names: Sequence[str], metadata: Mapping[str, Any]) -> Manifest:
        """Publish the artifact with exactly these parts, in this order, and return its manifest.

        Committing again returns what is there. Raises StorageError when a part is missing, or when the artifact was
        committed with other parts.
        """
        committed = self.artifact.find_manifest()
        if committed is None:
            committed = self._publish(names, metadata)
        if [part.name for part in committed.parts] != list(names):
            raise StorageError(
                f"{self.artifact.uri} is committed with {len(committed.parts)} parts that are not the {len(names)} of "
                "this run; two versions of raydistill may share the root: use one, or another root"
            )
        return committed

    def _publish(self, names: Sequence[str], metadata: Mapping[str, Any]) -> Manifest:
        artifact = self.artifact
        manifest = Manifest(
            kind=artifact.kind,
            name=artifact.name,
            fingerprint=artifact.fingerprint,
            parts=chosen_parts(self._ledger.finished(), names, artifact.uri),
            metadata=dict(metadata),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tool_versions=tool_versions(),
            operation_id=uuid.uuid4().hex,
        )
        # Whoever was first decides. The operation id makes these bytes ours alone, so a lost answer cannot be mistaken
        # for another writer's commit.
        artifact.store.put_if_absent(f"{artifact.prefix}/_manifest.json", sealed(manifest.to_json()))
        return artifact.manifest()
