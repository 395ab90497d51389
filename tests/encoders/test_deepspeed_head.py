"""Every head trains under DeepSpeed ZeRO-3, where a parameter exists only while the module that owns it runs.

DeepSpeed needs processes of its own (it sets global state), so this module is also a script, run once a rank:
`python FILE FOLDER MLM_FOLDER IDENTITY_FOLDER DECODER_FOLDER TIED_DECODER_FOLDER`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RANKS = 2
STEPS = 4
RESUMED_AT = 2
TEXTS = ["what is the capital of france", "who wrote war peace", "the old river", "tolstoy"]
# Kind of student: which of the folders, the configuration, the learning rate.
KINDS: dict[str, tuple[int, dict[str, Any], float]] = {
    "mlm": (0, {"head": "mlm"}, 0.05),
    "identity": (1, {"head": "identity", "active_share": 0.3}, 0.05),
    "mlm, sum": (0, {"head": "mlm", "pooling": "sum"}, 0.002),
    "identity, sum": (1, {"head": "identity", "active_share": 0.3, "pooling": "sum"}, 0.01),
    "identity, top": (1, {"head": "identity", "active_share": 0.5, "top_terms": 8}, 0.1),
    "decoder": (2, {"head": "decoder", "active_share": 0.3}, 0.05),
    "decoder, tied, last token": (
        3,
        {"head": "decoder", "active_share": 0.3, "attention": "causal", "pooling": "last"},
        0.05,
    ),
    "decoder, lora": (
        2,
        {"head": "decoder", "active_share": 0.3, "lora": {"rank": 2}, "gradient_checkpointing": True},
        0.2,
    ),
    "mlm, frozen": (0, {"head": "mlm", "freeze": {"embeddings": True, "layers": 1}, "gradient_checkpointing": True}, 0.05),
    "table": (0, {"head": "table", "table_start": "ones", "recency_parts": 2}, 0.5),
}


@pytest.fixture(scope="module")
def outcome(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run the script on two ranks: the folder it wrote its exports to, and what rank 0 printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    exports = tmp_path_factory.mktemp("exports")
    folders = [tiny_folder("Bert", True), tiny_folder("Bert", False), tiny_folder("Llama"), tiny_folder("Qwen3")]
    shared = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, str(exports), *map(str, folders)]
    ranks = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        printed = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, printed, strict=True):
        assert rank.returncode == 0, errors[-3000:]
    return exports, json.loads(printed[0][0].splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_zero_3_on_two_ranks_gives_the_losses_of_plain_torch(kind: str, outcome: tuple[Path, dict[str, Any]]) -> None:
    losses = outcome[1][kind]
    assert losses["plain"] == pytest.approx(losses["zero_3"], rel=1e-4)
    assert losses["plain"][-1] < losses["plain"][0] - 0.01, "it must have learned, or equality says nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_from_its_checkpoint_goes_on_as_if_never_stopped(
    kind: str, outcome: tuple[Path, dict[str, Any]]
) -> None:
    losses = outcome[1][kind]
    assert losses["resumed"] == losses["zero_3"][RESUMED_AT:]


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_of_a_sharded_student_is_the_student_trained_without_shards(
    kind: str, outcome: tuple[Path, dict[str, Any]]
) -> None:
    from raydistill.encoders.checkpoint import load_student

    exports, results = outcome
    student = load_student(exports / kind.replace(", ", "-"))
    vectors = student.encoder(device="cpu").encode_queries(TEXTS).to_dense()
    np.testing.assert_allclose(vectors, np.asarray(results[kind]["vectors"]), rtol=1e-3, atol=1e-4)


def main(exports: Path, folders: list[str]) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, which needs a compiler
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    result = {}
    for kind, (folder, fields, rate) in KINDS.items():
        result[kind] = outcomes(folders[folder], fields, rate, exports / kind.replace(", ", "-"))
    print()
    print(json.dumps(result))


def outcomes(folder: str, fields: dict[str, Any], rate: float, export: Path) -> dict[str, Any]:
    """Return losses of plain training, of ZeRO-3 training, of its resumption, and the plain student's vectors."""
    import deepspeed
    import torch

    from raydistill.config import StudentConfig, TextConfig
    from raydistill.encoders.checkpoint import save_student
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.encoders.splade import SpladeEncoder, SpladeModel
    from raydistill.encoders.tokens import padded, tokenize

    config = StudentConfig(model=folder, text=TextConfig(max_tokens=64), **fields)
    tokenizer = load_tokenizer(folder, None, False, "student.model")
    ids, mask = padded(tokenize(tokenizer, TEXTS, 64), 0)
    rank = torch.distributed.get_rank()
    mine = slice(rank * len(TEXTS) // RANKS, (rank + 1) * len(TEXTS) // RANKS)

    def fresh() -> tuple[Any, Any]:
        torch.manual_seed(1)  # adapters start from random numbers
        model = SpladeModel.from_config(config)
        model.start_head(TEXTS, tokenizer, config)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model, torch.optim.SGD(model.parameter_groups(rate, weight_decay=0.0))

    def sharded() -> Any:
        model, optimizer = fresh()
        settings = {
            "train_micro_batch_size_per_gpu": len(TEXTS) // RANKS,
            "gradient_clipping": 0.0,  # DeepSpeed's own default is 1.0
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]

    def loss_of(weights: Any) -> Any:
        return (weights**2).mean() - weights.mean()

    def step(engine: Any) -> float:
        engine.train()
        loss = loss_of(engine(ids[mine], mask[mine]))
        engine.backward(loss)
        engine.step()
        shared = loss.detach().clone()
        torch.distributed.all_reduce(shared)
        return shared.item() / RANKS

    found: dict[str, Any] = {"plain": [], "zero_3": []}
    model, optimizer = fresh()
    model.train()
    for _ in range(STEPS):
        loss = loss_of(model(ids, mask))
        found["plain"].append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found["vectors"] = SpladeEncoder(model, tokenizer, 64, device="cpu").encode_queries(TEXTS).to_dense().tolist()

    engine = sharded()
    for number in range(STEPS):
        if number == RESUMED_AT:
            engine.save_checkpoint(str(export) + "-state", tag="state")
        found["zero_3"].append(step(engine))
    engine = sharded()
    engine.load_checkpoint(str(export) + "-state", tag="state")
    found["resumed"] = [step(engine) for _ in range(STEPS - RESUMED_AT)]
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        if rank == 0:
            save_student(engine.module, tokenizer, export, config.text, "card")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
