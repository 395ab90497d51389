"""Students beyond masked LMs go through the whole loop: sharded training, checkpoint, continuation elsewhere, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.config import StudentConfig, TextConfig
from raydistill.encoders.checkpoint import load_student, save_student
from raydistill.encoders.splade import SpladeModel
from raydistill.index.publish import IndexVersion
from raydistill.storage.artifacts import Artifact
from tests.distill import loop_work, processes
from tests.distill.conftest import TERMS

Mined = tuple[Artifact, IndexVersion]
STEPS = 6
TEXTS = ["w1 w2 w3 w4 [SEP] w5 w6", "w7", "w8 w9 w1 [SEP] w2 [SEP] w3 w4"]
STUDENTS: dict[str, dict[str, Any]] = {
    "decoder": {"head": "decoder", "active_share": 0.3},
    "lora": {"head": "decoder", "active_share": 0.3, "lora": {"rank": 2}, "gradient_checkpointing": True},
    "table": {"head": "table", "recency_parts": 4},
}


@pytest.fixture(scope="module")
def tiny_decoder(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random two-layer Llama with the tokenizer of the tiny encoder."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("tiny-decoder"))
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TERMS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def trained(
    tmp_path: Path, name: str, mined: Mined, student: dict[str, Any], folder: str, workers: int, **more: Any
) -> Path:
    """Train in `workers` processes and return the folder with what came out."""
    resume = more.pop("resume", None)
    train = {
        "epochs": STEPS * 4 / 22 - 0.01,
        "global_batch": 4,
        "micro_batch": 2,
        "learning_rate": 3e-3,
        "head_learning_rate": 3e-2,
        "sampling": {"passages": 6, "top": 2, "policy": "uniform"},
        "objective": "0.8*kld(tau=1) + 0.2*infonce(tau=1)",
        "regularisation": {"terms": "0.01*flops"},
        "log_steps": 1,
        "checkpoint_steps": 3,
        **more,
    }
    candidates, index = mined
    spec = {
        "candidates": candidates.to_json(),
        "index": index.to_json(),
        "encoder": folder,
        "student": student,
        "train": train,
    }
    out = tmp_path / name
    out.mkdir()
    spec |= {"folder": str(out), **({"resume": str(resume)} if resume else {})}
    processes.run(loop_work.train, workers, spec, out)
    return out


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in loop_work.answer(folder)["records"]]


def exported(folder: Path, out: Path, student: dict[str, Any], source: str) -> SpladeModel:
    """Export what training left in `out` and load it from the new folder."""
    plain = {name: value for name, value in student.items() if name not in ("lora", "freeze", "gradient_checkpointing")}
    text = TextConfig(max_tokens=64)
    model = SpladeModel.from_config(StudentConfig(model=source, text=text, **plain))
    weights = torch.load(out / "model.pt", weights_only=False)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    save_student(model, load_tokenizer_of(source), folder, text, "card")
    return model


def load_tokenizer_of(source: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


@pytest.mark.parametrize("kind", STUDENTS)
def test_zero_3_trains_checkpoints_resumes_anywhere_and_exports(
    kind: str, tmp_path: Path, mined: Mined, tiny_decoder: str, tiny_encoder: str
) -> None:
    student = STUDENTS[kind]
    source = tiny_encoder if kind == "table" else tiny_decoder
    unbroken = trained(tmp_path, "unbroken", mined, student, source, 2, zero_stage=3)
    expected = losses(unbroken)
    assert len(expected) == STEPS
    assert all(record["gradient_norm"] > 0 for record in loop_work.answer(unbroken)["records"])
    checkpoint = unbroken / "checkpoint-3"
    same = trained(tmp_path, "same", mined, student, source, 2, zero_stage=3, resume=checkpoint)
    assert losses(same) == expected[3:], "to the last bit in the same layout"
    elsewhere = trained(tmp_path, "elsewhere", mined, student, source, 1, zero_stage=1, micro_batch=4, resume=checkpoint)
    assert losses(elsewhere) == pytest.approx(expected[3:], rel=1e-5)

    model = exported(tmp_path / "student", unbroken, student, source)
    reference = exported(tmp_path / "reference", elsewhere, student, source)
    for (name, ours), theirs in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
    vectors = load_student(tmp_path / "student").encoder(device="cpu").encode_queries(TEXTS)
    assert vectors.nnz > 0
    if kind == "table":  # sentence_transformers has no table with parts
        return
    from sentence_transformers import SparseEncoder

    theirs = SparseEncoder(str(tmp_path / "student"), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(vectors.to_dense(), theirs.float().cpu().numpy(), atol=1e-5)
