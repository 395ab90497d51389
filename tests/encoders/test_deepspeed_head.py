"""The heads train under DeepSpeed ZeRO-3, where a parameter exists only while the module that owns it runs.

DeepSpeed needs a process of its own (it sets global state), so this module is also a script:
`python FILE MLM_FOLDER IDENTITY_FOLDER`.
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

import pytest

STEPS = 4


def test_zero_3_gives_the_losses_of_plain_torch(tiny_folder: Callable[..., Path]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        **{"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
    }
    command = [sys.executable, __file__, str(tiny_folder("Bert", True)), str(tiny_folder("Bert", False))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for head, losses in json.loads(done.stdout.splitlines()[-1]).items():
        assert losses["plain"] == pytest.approx(losses["zero_3"], rel=1e-4), head
        assert losses["plain"][-1] < losses["plain"][0] - 0.01, f"{head} must have learned, or equality says nothing"


def main(folders: dict[str, str]) -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, which needs a compiler
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    result = {head: losses_by_kind(folder, head) for head, folder in folders.items()}
    print()
    print(json.dumps(result))


def losses_by_kind(folder: str, head: Any) -> dict[str, list[float]]:
    import deepspeed
    import torch

    from raydistill.config import StudentConfig, TextConfig
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.encoders.splade import SpladeModel
    from raydistill.encoders.tokens import padded, tokenize

    tokenizer = load_tokenizer(folder, None, False, "student.model")
    texts = ["what is the capital of france", "who wrote war peace", "the old river", "tolstoy"]
    ids, mask = padded(tokenize(tokenizer, texts, 64), 0)
    losses: dict[str, list[float]] = {"plain": [], "zero_3": []}
    for kind, found in losses.items():
        model = SpladeModel.from_config(StudentConfig(model=folder, head=head, text=TextConfig(max_tokens=64)))
        if head == "identity":
            model.calibrate(texts, tokenizer, 0.3, 64)
        optimizer = torch.optim.SGD(model.parameter_groups(0.05, weight_decay=0.0))
        engine: Any = None
        if kind == "zero_3":
            settings = {
                "train_micro_batch_size_per_gpu": len(texts),
                "gradient_clipping": 0.0,  # DeepSpeed's own default is 1.0
                "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            }
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        for module in model.modules():
            module.train(False)  # no dropout, gradients all the same
        for _ in range(STEPS):
            weights = (engine or model)(ids, mask)
            loss = (weights**2).mean() - weights.mean()
            found.append(loss.item())
            if engine is None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                engine.backward(loss)
                engine.step()
    return losses


if __name__ == "__main__":
    main({"mlm": sys.argv[1], "identity": sys.argv[2]})
