"""`raydistill verify`: silent about a sound root, and about nothing that is wrong with another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydistill.cli import main
from raydistill.distill.checkpoints import Catalogue, write_state, write_tensors
from raydistill.errors import StorageError
from raydistill.index.publish import IndexWriter, load_version
from raydistill.storage import inventory
from raydistill.storage.hashing import sealed, unsealed
from raydistill.storage.store import open_store
from raydistill.storage.verify import ARTIFACTS, index_prefix, verify
from tests.storage.fault_proxy import FaultProxy
from tests.upkeep.root_world import artifact_at, build_index, everything, key_of, keys, make_artifact

PIECES = [
    ("segments", "s1"),
    ("statistics", ".safetensors"),
    ("manifests/00000002",),
    ("CURRENT",),
    ("candidates/done", "_manifest"),
    ("candidates/done", "shard-1", ".parquet"),
]


def put_checkpoint(root: str, folder: Path) -> None:
    """Store a checkpoint of two files as Ray Train does, under a run."""
    folder.mkdir()
    catalogue = Catalogue.joined(
        write_tensors(folder, writer, [(f"parameter/{writer}", torch.randn(50))]) for writer in range(2)
    )
    write_state(folder, "training", "f" * 64, catalogue, {"step": 3, "best": -float("inf")})
    for path in folder.iterdir():
        open_store(root).replace(f"runs/one/training/ffff/checkpoint_000001/{path.name}", path)


def flip(root: str, key: str, byte: int = -1, bit: int = 0) -> None:
    store = open_store(root)
    content = bytearray(store.read(key))
    content[byte] ^= 1 << bit
    store.replace(key, bytes(content))


def test_a_sound_root_has_no_damage_and_every_committed_object_is_looked_at(root: str, tmp_path: Path) -> None:
    everything(root)
    put_checkpoint(root, tmp_path / "checkpoint")
    found = verify(root)
    assert found.damages == []
    assert found.objects == len(keys(root)) - 1  # the run's log is nobody's object
    assert found.size == sum(info.size for info in open_store(root).list("")) - len(b"[]")
    quick = verify(root, quick=True)
    assert quick.damages == []
    assert quick.size < found.size / 4


@pytest.mark.parametrize("pieces", PIECES, ids="/".join)
def test_a_lost_a_cut_and_a_flipped_object_is_found_and_told_apart(root: str, pieces: tuple[str, ...]) -> None:
    everything(root)
    key, store = key_of(root, *pieces), open_store(root)
    content = store.read(key)
    flip(root, key)
    assert [damage.key for damage in verify(root).damages] == [key]
    store.replace(key, content[:-1])
    assert [damage.key for damage in verify(root).damages] == [key]
    store.delete(key)
    named_by_others = key.endswith((".seg", ".safetensors", ".parquet"))
    for quick in (False, True):
        damages = verify(root, quick=quick).damages
        if named_by_others:
            assert [damage.key for damage in damages] == [key]
            assert "is missing; " in damages[0].problem
        elif "done" in key:
            assert damages == []  # without its manifest an artifact is not committed, so nothing is promised
        else:  # a lost CURRENT, and a CURRENT whose version is lost
            assert [damage.key for damage in damages] == ["indexes/passages/CURRENT"]
    store.replace(key, content)
    assert verify(root).damages == []


def test_quick_sees_sizes_and_not_contents(root: str) -> None:
    everything(root)
    key, store = key_of(root, "segments", "s0"), open_store(root)
    flip(root, key)
    assert verify(root, quick=True).damages == []
    store.replace(key, store.read(key)[:-1])
    assert [damage.key for damage in verify(root, quick=True).damages] == [key]


def test_what_a_resumed_stage_would_take_as_it_is_must_be_whole_but_need_not_be_there(root: str, tmp_path: Path) -> None:
    everything(root)
    put_checkpoint(root, tmp_path / "checkpoint")
    store = open_store(root)
    unfinished = [key_of(root, "unfinished", ".parquet"), key_of(root, "checkpoint_", "tensors-00001")]
    receipts = [key_of(root, "unfinished", "_receipts"), key_of(root, "indexes", "/receipts/")]
    for key in [*unfinished, *receipts, key_of(root, "state.json"), key_of(root, "cache/teachers")]:
        content = store.read(key)
        flip(root, key, byte=len(content) // 2)
        assert [damage.key for damage in verify(root).damages] == [key]
        store.replace(key, content)
    for key in unfinished:
        store.delete(key)
    assert verify(root).damages == []


def test_only_what_was_asked_for_is_looked_at(root: str) -> None:
    everything(root)
    build_index(root, "third", name="others")
    segment, part = key_of(root, "indexes/passages/segments"), key_of(root, "candidates/done", ".parquet")
    flip(root, segment)
    flip(root, part)
    assert [damage.key for damage in verify(root, [index_prefix("passages")]).damages] == [segment]
    assert verify(root, [index_prefix("others")]).damages == []
    assert [damage.key for damage in verify(root, ARTIFACTS).damages] == [part]
    assert [damage.key for damage in verify(root).damages] == [part, segment]
    with pytest.raises(StorageError, match=r"holds nothing under indexes/nothing/; check"):
        verify(root, [index_prefix("nothing")])


def test_a_manifest_under_anothers_key_is_found(root: str) -> None:
    everything(root)
    make_artifact(root, "other")
    store = open_store(root)
    done, other = f"{artifact_at(root, 'done').prefix}/_manifest.json", f"{artifact_at(root, 'other').prefix}/_manifest.json"
    store.replace(other, store.read(done))
    store.replace("indexes/passages/manifests/00000001.json", store.read("indexes/passages/manifests/00000002.json"))
    problems = {damage.key: damage.problem for damage in verify(root).damages}
    assert problems[other] == f"it is the manifest of {done}"
    assert "manifests/00000002.json" in problems["indexes/passages/manifests/00000001.json"]


def test_a_current_that_names_no_version_is_found(root: str) -> None:
    everything(root)
    store, key = open_store(root), "indexes/passages/CURRENT"
    document = unsealed(store.read(key), key)
    del document["tool_versions"]
    store.replace(key, sealed({**document, "version": 7}))
    [damage] = verify(root).damages
    assert (damage.key, damage.problem) == (key, "it names indexes/passages/manifests/00000007.json, which is missing")
    assert "rollback ROOT passages --to VERSION" in damage.remedy


def test_what_changes_while_it_looks_is_no_damage(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing is old as soon as it is made: here a version appears, and another goes, after it."""
    everything(root)
    store, real = open_store(root), inventory.holdings

    def and_then(*arguments: str) -> object:
        for holding in list(real(store, "indexes/")):
            build_index(root, "appears")
            store.delete("indexes/passages/manifests/00000001.json")
            for segment in first.segments:
                store.delete(segment.key)
            yield holding

    first = load_version(root, "passages", 1)
    monkeypatch.setattr("raydistill.storage.verify.holdings", and_then)
    assert verify(root, [index_prefix("passages")]).damages == []


def test_a_store_that_does_not_answer_is_an_error_and_no_damage(s3_root: str, fault_proxy: FaultProxy) -> None:
    everything(s3_root)
    fault_proxy.fault = lambda method, path: "deny" if method == "GET" and "shard" in path else "pass"
    with pytest.raises(StorageError, match="access denied"):
        verify(s3_root)


def test_the_command_says_what_is_damaged_and_what_to_do(
    root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = everything(root)
    assert main(["verify", root]) == 0
    assert "objects checked" in capsys.readouterr().out
    flip(root, version.segments[0].key)
    assert main(["verify", root, "--index", "passages"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 damaged" in printed
    assert "run the index stage" in printed
    assert main(["verify", root, "--index", "passages", "--quick"]) == 0
    assert main(["verify", root, "--artifacts"]) == 0
    assert main(["verify", root, "--index", "nothing"]) == 1


def test_a_relative_path_is_one_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "runs"]) == 0


@pytest.mark.parametrize("pieces", [("segments", "s1"), ("statistics", ".safetensors")], ids="/".join)
def test_what_the_table_advises_for_an_object_of_an_index_makes_it_good(root: str, pieces: tuple[str, ...]) -> None:
    version = everything(root)
    key, store = key_of(root, *pieces, ""), open_store(root)
    content = store.read(key)
    flip(root, key)
    assert "delete it and run the index stage again" in verify(root).damages[0].remedy
    store.delete(key)
    owner = version if version.fingerprint[:16] in key else load_version(root, "passages", 1)
    assert build_index(root, str(owner.metadata["content"])) == owner
    assert store.read(key) == content
    assert verify(root).damages == []
    assert IndexWriter(root, "passages", version.fingerprint).finished().keys() == {"s0", "s1"}
