"""The Seismic index of an index version as an artifact, built on Ray: one part a segment.

Artifact of kind "seismic", named by the index; its fingerprint covers the index version, the parameters of the build and the
library's version. Part {segment}.seismic is the library's file for that segment, empty where no passage that is not
deleted has a term. Building is `seismic`; a half-built artifact goes on with the segments that are missing.
"""

from __future__ import annotations

import tempfile
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from raydistill.actor_pool import map_shards
from raydistill.config import SeismicBuildConfig, WorkerConfig
from raydistill.index.exchange.stored import stored_rows
from raydistill.index.publish import IndexVersion
from raydistill.index.seismic import SUFFIX, build_seismic, seismic_library, write_input
from raydistill.progress import track
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint

_FORMAT_VERSION = 1


def seismic_artifact(version: IndexVersion, config: SeismicBuildConfig) -> Artifact:
    """Return the address of what `build_approximate` makes, committed or not. Raises ConfigError without the library."""
    seismic_library()
    settings = {"build": config, "library": packages.version("pyseismic-lsr")}
    inputs = {"index": version.fingerprint}
    return Artifact(version.root, "seismic", version.name, fingerprint("seismic", _FORMAT_VERSION, settings, inputs))


def build_approximate(version: IndexVersion, config: SeismicBuildConfig, workers: WorkerConfig) -> Artifact:
    """Return the Seismic index of a version, building what of it is missing.

    manifest.metadata: {"index": name and version, "build": parameters, "library": its version}.

    Raises:
        ConfigError: the library is not installed.
        ResourceError: the cluster can never hold the workers.
    """
    artifact = seismic_artifact(version, config)
    if artifact.find_manifest() is not None:
        return artifact
    writer = ArtifactWriter(artifact)
    finished = writer.finished()
    missing = [number for number, segment in enumerate(version.segments) if segment.name not in finished]
    arguments = {"version": version, "config": config, "writer": writer}
    with track("seismic", version.passages, "passages") as advance:
        advance(version.passages - sum(version.segments[number].passages for number in missing))
        specs = [{"segment": number} for number in missing]
        for receipt in map_shards(specs, _SeismicBuilder, arguments, workers, "seismic"):
            advance(receipt["passages"])
    metadata = {
        "index": {"name": version.name, "version": version.version},
        "build": config.model_dump(mode="json"),
        "library": packages.version("pyseismic-lsr"),
    }
    writer.commit([segment.name for segment in version.segments], metadata)
    return artifact


class _SeismicBuilder:
    """Builds the Seismic index of one segment."""

    def __init__(self, version: IndexVersion, config: SeismicBuildConfig, writer: ArtifactWriter) -> None:
        self._version = version
        self._config = config
        self._writer = writer

    def __call__(self, spec: dict[str, Any]) -> dict[str, Any]:
        entry = self._version.segments[spec["segment"]]
        with tempfile.TemporaryDirectory(prefix="raydistill-seismic-") as folder:
            source, target = Path(folder) / "vectors.bin", Path(folder) / f"index{SUFFIX}"
            if write_input(source, stored_rows(self._version, entry), entry.passages):
                build_seismic(source, target, self._version.vocabulary_size, self._config)
            else:
                target.touch()
            self._writer.put_part(entry.name, target, SUFFIX, rows=entry.passages)
        return {"passages": entry.passages}
