"""Counters of terms out of this machine's cache: the same counts, no torch, and never those of another tokenizer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from raydistill.config import StudentConfig
from raydistill.encoders import term_cache
from raydistill.encoders.documents import TOKENIZER_FILES, load_term_counter, load_tokenizer
from raydistill.encoders.lexical import TermCounter, special_token_ids
from tests.small_world import environment

COUNT = """
import json, sys
from raydistill.config import StudentConfig
from raydistill.encoders.documents import load_term_counter
counter = load_term_counter(StudentConfig(model=sys.argv[1]))
found = counter.counts(json.loads(sys.argv[2]))
print(json.dumps([found.term_ids.tolist(), found.weights.tolist(), "torch" in sys.modules]))
"""


@pytest.fixture
def model(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of this test's own, unknown to the cache."""
    shutil.copytree(tiny_folder(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "note": str(tmp_path)}))
    return tmp_path / "model"


def entry(model: Path, **fields: Any) -> Path | None:
    return term_cache.entry(StudentConfig(model=str(model), **fields), TOKENIZER_FILES)


def same(one: TermCounter, other: TermCounter, texts: list[str]) -> bool:
    first, second = one.counts(texts), other.counts(texts)
    return (
        one.vocabulary() == other.vocabulary()
        and np.array_equal(first.indptr, second.indptr)
        and np.array_equal(first.term_ids, second.term_ids)
        and np.array_equal(first.weights, second.weights)
    )


def test_the_next_process_counts_the_same_and_loads_no_torch(model: Path, texts: list[str]) -> None:
    assert not entry(model).exists()
    first = load_term_counter(StudentConfig(model=str(model)))
    assert entry(model).is_file()
    assert same(load_term_counter(StudentConfig(model=str(model))), first, texts)
    command = [sys.executable, "-c", COUNT, str(model), json.dumps(texts)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    found = first.counts(texts)
    assert json.loads(done.stdout) == [found.term_ids.tolist(), found.weights.tolist(), False]


@pytest.mark.parametrize("architecture", ["Bert", "ModernBert", "Llama"])
def test_a_counter_survives_its_json(architecture: str, tiny_folder: Callable[..., Path], texts: list[str]) -> None:
    tokenizer = load_tokenizer(str(tiny_folder(architecture)), None, False, "student.model")
    counter = TermCounter(tokenizer, len(tokenizer) + 3)
    assert same(TermCounter.from_json(json.loads(json.dumps(counter.to_json()))), counter, texts)


def test_what_only_the_tokenizer_around_it_calls_special_stays_out(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer.__class__(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str()), unk_token="[UNK]", eos_token="paris"
    )
    counter = TermCounter(tokenizer)
    (paris,) = tokenizer.convert_tokens_to_ids(["paris"])
    assert paris in special_token_ids(tokenizer)
    again = TermCounter.from_json(counter.to_json())
    assert paris not in again.counts(["paris river"]).term_ids
    assert same(again, counter, ["paris river", "[CLS]"])


def test_another_tokenizer_has_another_entry(model: Path, texts: list[str]) -> None:
    before, path = load_term_counter(StudentConfig(model=str(model))), entry(model)
    described = json.loads((model / "tokenizer.json").read_text())
    described["normalizer"]["lowercase"] = not described["normalizer"]["lowercase"]
    (model / "tokenizer.json").write_text(json.dumps(described))
    assert entry(model) != path
    assert not same(load_term_counter(StudentConfig(model=str(model))), before, ["Paris", *texts])


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{}", None])
def test_a_damaged_entry_is_made_again(model: Path, texts: list[str], damage: bytes | None) -> None:
    student = StudentConfig(model=str(model))
    counter, path = load_term_counter(student), entry(model)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if damage is None else damage)
    assert same(load_term_counter(student), counter, texts)
    assert path.read_bytes() == whole
    assert list(path.parent.glob(".*.tmp")) == []


def test_without_a_writable_cache_counters_are_loaded_as_before(
    model: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = load_term_counter(StudentConfig(model=str(model)))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RAYDISTILL_CACHE_DIR", str(tmp_path / "file"))
    assert same(load_term_counter(StudentConfig(model=str(model))), counter, texts)
    assert (tmp_path / "file").read_text() == "no folder"


def test_what_may_change_under_its_name_is_not_kept(model: Path) -> None:
    assert entry(model, trust_remote_code=True) is None
    assert entry(Path("org/model")) is None
    assert entry(Path("org/model"), revision="main") is None
    assert entry(Path("org/model"), revision="0123456789abcdef0123456789abcdef01234567") is not None
