"""A finished student at its address in a run root: taken out as a folder, and started from by another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SparseEncoder

from raydistill.cli import main
from raydistill.config import StudentConfig, TextConfig
from raydistill.config_loading import validated
from raydistill.encoders.backbones import load_backbone
from raydistill.encoders.checkpoint import load_student, load_tokenizer, save_student, starting_model
from raydistill.encoders.splade import SpladeModel
from raydistill.errors import ConfigError
from raydistill.model_source import model_identity, resolve_model
from raydistill.storage.artifacts import Artifact, ArtifactWriter
from raydistill.storage.folders import put_folder
from raydistill.storage.students import laid_out, student_artifact

TEXTS = ["w1 w2 w3", "w9 w10 [SEP] w4"]


@pytest.fixture
def student(tiny_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A student in a run root, whose cache is empty."""
    monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(tmp_path / "cache"))
    return stored(tiny_encoder, tmp_path, "a" * 64)


def stored(tiny_encoder: str, tmp_path: Path, fingerprint: str, factor: float = 2.0) -> Artifact:
    backbone = load_backbone(tiny_encoder, None, "mlm", False, "student")
    backbone.bert.embeddings.word_embeddings.weight.data *= factor
    folder = tmp_path / f"made-{fingerprint[:4]}-{factor}"
    tokenizer = load_tokenizer(tiny_encoder, None, False, "student.model")
    save_student(SpladeModel(backbone, "mlm"), tokenizer, folder, TextConfig(max_tokens=16), "the card of training")
    artifact = Artifact(str(tmp_path / "root"), "student", "small", fingerprint)
    ArtifactWriter(artifact).commit(put_folder(ArtifactWriter(artifact), folder), {})
    return artifact


def dense(folder: str | Path) -> np.ndarray:
    return load_student(folder).encoder(device="cpu").encode_queries(TEXTS).to_dense()


def test_a_student_is_written_as_a_folder_that_sentence_transformers_loads(
    student: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-student", student.uri, "--to", str(tmp_path / "out")]) == 0
    assert "no test turns yet" in capsys.readouterr().out
    assert "the card of training\n\n## Use\n" in (tmp_path / "out" / "README.md").read_text()
    theirs = SparseEncoder(str(tmp_path / "out"), device="cpu").encode_query(TEXTS, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(dense(tmp_path / "out"), theirs.numpy(), atol=1e-5)


def test_its_address_may_be_relative(student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export-student", "root/" + student.uri.partition("/root/")[2], "--to", "out"]) == 0
    assert (tmp_path / "out" / "config.json").is_file()


def test_its_card_has_the_measures_of_its_own_test_turns(student: Artifact, tmp_path: Path) -> None:
    card = tmp_path / "root" / "runs" / "small" / "model-card.md"
    card.parent.mkdir(parents=True)
    for whose, told in (("b" * 64, "the card of training"), (student.fingerprint, "measured\n<!-- student aaaa")):
        card.write_text(f"measured\n<!-- student {whose} -->\n")
        assert main(["export-student", student.uri, "--to", str(tmp_path / whose[:1])]) == 0
        readme = (tmp_path / whose[:1] / "README.md").read_text()
        assert told in readme
        assert readme.count("## Use\n\n```python\nfrom sentence_transformers import SparseEncoder") == 1
        assert ("the card of training" in readme) != ("measured" in readme)


@pytest.mark.parametrize(
    ("address", "to", "sentence"),
    [
        ("{root}/artifacts/student/small-0123", "new", "is no complete student"),
        ("{root}/runs/small", "new", "is no address of a student or document encoder; give ROOT/artifacts/student/NAME-ID"),
        ("{student}", "root", "and that folder holds files; name a new one"),
        ("{student}", "made-aaaa-2.0/config.json", "no folder can be made there"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(
    address: str, to: str, sentence: str, student: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = address.format(root=student.root, student=student.uri)
    assert main(["export-student", given, "--to", str(tmp_path / to)]) == 1
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_another_run_starts_from_its_address(student: Artifact, tmp_path: Path) -> None:
    relative = validated(StudentConfig, {"model": "root/" + student.uri.partition("/root/")[2]}, tmp_path, "here")
    assert relative.model == str(Path(student.root) / student.uri.partition("/root/")[2])
    for address in (student.uri, f"file://{student.uri.removeprefix('file://')}"):
        started = starting_model(StudentConfig(model=address, text=TextConfig(max_tokens=16)))
        assert started.head_has_values
        folder = Path(resolve_model(address, "student.model"))
        np.testing.assert_array_equal(dense(folder), dense(laid_out(student)))
    assert model_identity(student.uri) == model_identity(str(laid_out(student)))
    with pytest.raises(ConfigError, match=r"student\.model: .* is no complete student"):
        resolve_model(f"{student.uri}0", "student.model")


def test_a_student_that_was_trained_anew_is_not_taken_for_the_old_one(
    student: Artifact, tiny_encoder: str, tmp_path: Path
) -> None:
    old = laid_out(student)
    again = stored(tiny_encoder, tmp_path / "elsewhere", student.fingerprint, factor=3.0)
    assert again.fingerprint == student.fingerprint
    assert laid_out(again) != old
    assert not np.allclose(dense(laid_out(again)), dense(old))
    assert laid_out(student) == old
    assert student_artifact(student.uri) == student
