"""A running service over a small real index with a tiny random student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import DataConfig, IndexConfig, ServeConfig, StudentConfig
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact, ArtifactWriter, fingerprint
from raydistill.storage.folders import put_folder
from tests.animal_world import tiny_student, write_corpus
from tests.conftest import free_port


@dataclass(frozen=True)
class World:
    """An index in a run root, and a student both as a folder and as an artifact there."""

    folder: Path
    root: str
    student: Artifact
    data: DataConfig
    student_config: StudentConfig

    def publish(self, k1: float) -> IndexVersion:
        """Publish the index with other BM25 impacts: the same passages with other scores."""
        from raydistill.index.build import build_index
        from raydistill.index.corpus import prepare_corpus

        config = IndexConfig.model_validate(
            {"name": "animals", "documents": {"kind": "lexical", "k1": k1}, "passages_per_segment": 7}
        )
        corpus = prepare_corpus(self.data, config.passages_per_segment, config.workers, self.root)
        return build_index(config, self.student_config, corpus, self.root)

    def config(self, **fields: Any) -> ServeConfig:
        """Return the configuration of a service of this world on a free port, small enough for the test's cluster."""
        small = {
            "root": self.root,
            "index": "animals",
            "student": self.student.uri,
            "http": {"port": free_port(), "k": 50, "body_bytes": 20_000, "utterance_characters": 500, "utterances": 9},
            "replicas": {"workers": {"cpus": 0.4}},
            "fan_out": {"workers": {"actors": 2, "cpus": 0.2}},
            "poll_s": 0.2,
        }
        return ServeConfig.model_validate({**small, **fields})


@pytest.fixture(scope="session")
def animals(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    from raydistill.encoders.checkpoint import save_student
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.encoders.splade import SpladeModel

    folder = tmp_path_factory.mktemp("animals")
    write_corpus(folder / "corpus.jsonl.gz")
    (folder / "root").mkdir()
    (folder / "encoder").mkdir()
    tiny_student(folder / "encoder")
    data = DataConfig.model_validate(
        {
            "corpus": [str(folder / "corpus.jsonl.gz")],
            "train": {"conversations": "/unused"},
            "test": {"conversations": "/unused"},
        }
    )
    student_config = StudentConfig.model_validate({"model": str(folder / "encoder"), "text": {"max_tokens": 64}})
    tokenizer = load_tokenizer(student_config.model, None, False, "student.model")
    save_student(SpladeModel.from_config(student_config), tokenizer, folder / "student", student_config.text, "A student.")
    student = Artifact(str(folder / "root"), "student", "trial", fingerprint("student", 1, {}, {}))
    ArtifactWriter(student).commit(put_folder(ArtifactWriter(student), folder / "student"), {})
    world = World(folder, str(folder / "root"), student, data, student_config)
    world.publish(0.9)
    return world


@pytest.fixture(scope="module")
def served(animals: World) -> Iterator[ServeConfig]:
    """The configuration of a service that runs during the module's tests."""
    from raydistill.serving.start import running

    config = animals.config()
    with running(config):
        yield config
