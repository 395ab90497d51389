"""Checkpoints: exact tensors out of any DeepSpeed layout and into any other, and refusal of what is damaged or foreign."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.config import TrainConfig
from raydistill.distill.checkpoints import STATE_FILE, Catalogue, Checkpoint, write_state, write_tensors
from raydistill.distill.engine import Workplace, effective_zero_stage, gathered_on_first, set_learning_rate, start_engine
from raydistill.distill.training_files import BestParameters
from raydistill.distill.whole_state import KINDS, WholeState
from raydistill.errors import TrainingError
from raydistill.storage.hashing import sealed, unsealed
from raydistill.storage.store import open_store
from tests.distill import processes

SHAPES = {"parameter/a": (3, 2), "parameter/b": (5,)}


def put(folder: Path, writers: int = 2) -> dict[str, Tensor]:
    """Write a checkpoint of one or two writers and return its tensors."""
    folder.mkdir(exist_ok=True)
    values = {key: torch.randn(shape) for key, shape in SHAPES.items()}
    items = list(values.items())
    parts = [write_tensors(folder, writer, items[writer::writers]) for writer in range(writers)]
    write_state(folder, "training", "f" * 64, Catalogue.joined(parts), {"step": 7})
    return values


def test_what_was_written_is_read(tmp_path: Path) -> None:
    values = put(tmp_path)
    found = Checkpoint(tmp_path, "training", "f" * 64, SHAPES)
    assert found.state == {"step": 7}
    for key, value in values.items():
        assert torch.equal(found.tensor(key), value)


def _cut_short(folder: Path) -> None:
    path = folder / "tensors-00001-000.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _swapped(folder: Path) -> None:
    _, second = sorted(folder.glob("*.safetensors"))
    path = folder / STATE_FILE
    record = unsealed(path.read_bytes(), path.name)
    record["tensors"]["parameter/a"]["file"] = second.name
    path.write_bytes(sealed(record))


def _flipped(folder: Path) -> None:
    path = folder / "tensors-00001-000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (_cut_short, r"tensors-00001-000\.safetensors has \d+ bytes instead of \d+"),
    (_flipped, r"tensors-00001-000\.safetensors does not have the SHA-256 that was written"),
    (lambda folder: (folder / "tensors-00000-000.safetensors").unlink(), "tensors-00000-000.safetensors is missing"),
    (lambda folder: (folder / STATE_FILE).unlink(), "state.json is missing"),
    (lambda folder: (folder / STATE_FILE).write_text((folder / STATE_FILE).read_text()[:100]), "state.json is damaged"),
    (_swapped, "does not hold parameter/a"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_the_reason(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    put(tmp_path)
    damage(tmp_path)
    with pytest.raises(TrainingError, match=rf"cannot be used: .*{reason}.*; remove it"):
        Checkpoint(tmp_path, "training", "f" * 64, SHAPES).tensor("parameter/a")


@pytest.mark.parametrize(
    ("contents", "fingerprint", "shapes", "reason"),
    [
        (
            "training",
            "e" * 64,
            SHAPES,
            "it holds the training of training ffffffffffffffff, and training of eeeeeeeeeeeeeeee",
        ),
        ("parameters", "f" * 64, SHAPES, "parameters of ffffffffffffffff is needed"),
        ("training", "f" * 64, {**SHAPES, "parameter/c": (1,)}, "it lacks parameter/c"),
        ("training", "f" * 64, {"parameter/a": (3, 2)}, "it holds parameter/b, which the student does not have"),
        ("training", "f" * 64, {**SHAPES, "parameter/b": (6,)}, r"parameter/b has the shape \(5,\) there and \(6,\)"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, contents: Any, fingerprint: str, shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    put(tmp_path)
    with pytest.raises(TrainingError, match=reason):
        Checkpoint(tmp_path, contents, fingerprint, shapes)


class Small(nn.Module):
    """Sizes that no number of workers divides, a parameter large enough for ZeRO 3 to shard, a frozen and a tied one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Linear(401, 257)
        self.odd = nn.Linear(257, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.tied = nn.Linear(257, 3)
        self.tied.weight = self.odd.weight

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.tanh(self.large(rows.to(self.large.weight.dtype)))
        result: Tensor = (self.frozen(self.odd(hidden)) + self.tied(hidden)).float()
        return result


def step_and_save(rank: int, workers: int, spec: dict[str, Any]) -> None:
    """Take two steps from the start, or restore, and write a checkpoint."""
    config = TrainConfig.model_validate(
        {"global_batch": 4, "micro_batch": 1, "workers": {"actors": workers}, "gradient_clip": 0.5, **spec["train"]}
    )
    model = Small()
    group = {"params": [each for each in model.parameters() if each.requires_grad], "lr": 1e-2, "weight_decay": 0.1}
    place = Workplace(rank, workers, torch.device("cpu"))
    engine = start_engine(model, [group], config, place)
    whole = WholeState(engine)
    shapes = {f"{kind}/{name}": whole.shape(name) for name in whole.names for kind in KINDS}
    assert whole.names == ("large.weight", "large.bias", "odd.weight", "odd.bias", "tied.bias")
    if "source" in spec:
        source = Checkpoint(Path(spec["source"]), "training", "f" * 64, shapes)
        for name in whole.names:
            for kind in KINDS:
                whole.write(name, kind, source.tensor(f"{kind}/{name}"))
        whole.adam_steps = source.state["adam_steps"]
    generator = torch.Generator().manual_seed(1)
    for _ in range(spec["steps"]):
        set_learning_rate(engine, 1.0)
        for rows in torch.randn(4 // workers, workers, 401, generator=generator):
            engine.backward(engine(rows[rank : rank + 1]).square().sum())
            engine.step()
    own = ((f"{kind}/{name}", whole.read(name, kind)) for name in whole.names for kind in KINDS)
    own = (item for number, item in enumerate(list(own)) if number % workers == rank)
    parts = gathered_on_first(write_tensors(Path(spec["target"]), rank, own), place)
    if parts:
        state = {"adam_steps": whole.adam_steps}
        write_state(Path(spec["target"]), "training", "f" * 64, Catalogue.joined(parts), state)


def tensors(folder: Path) -> dict[str, Tensor]:
    record = json.loads((folder / STATE_FILE).read_text())
    shapes = {key: tuple(entry["shape"]) for key, entry in record["tensors"].items()}
    found = Checkpoint(folder, "training", "f" * 64, shapes)
    return {key: found.tensor(key) for key in shapes}


LAYOUTS = [(1, 0, "fp32"), (2, 1, "fp32"), (2, 2, "bf16"), (4, 3, "fp32"), (1, 0, "bf16"), (2, 3, "bf16")]


def test_every_layout_gives_back_exactly_what_another_wrote(tmp_path: Path) -> None:
    # A chain: each layout restores what the one before wrote, writes it again unchanged, and the first trained it.
    before: Path | None = None
    for workers, zero_stage, precision in [*LAYOUTS, LAYOUTS[0]]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        spec: dict[str, Any] = {"train": {"zero_stage": zero_stage, "precision": precision}, "target": str(folder)}
        spec |= {"steps": 2} if before is None else {"steps": 0, "source": str(before)}
        processes.run(step_and_save, workers, spec, folder)
        if before is not None:
            wanted, found = tensors(before), tensors(folder)
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                assert torch.equal(found[key], value), f"{key} in {workers} workers, ZeRO {zero_stage}, {precision}"
            assert Checkpoint(folder, "training", "f" * 64, {k: tuple(v.shape) for k, v in found.items()}).state == {
                "adam_steps": 2
            }
        before = folder


def test_one_worker_in_fp32_keeps_no_second_copy_for_sharing() -> None:
    stages = {
        (stage, workers, precision): effective_zero_stage(TrainConfig(zero_stage=stage, precision=precision), workers)
        for stage in (0, 1, 2, 3)
        for workers in (1, 2)
        for precision in ("fp32", "bf16")
    }
    assert [stages[stage, 1, "fp32"] for stage in (0, 1, 2, 3)] == [0, 0, 0, 3]
    assert all(found == asked for (asked, *rest), found in stages.items() if rest != [1, "fp32"])


@pytest.mark.parametrize(("workers", "zero_stage", "precision"), LAYOUTS[1:4])
def test_every_layout_takes_the_same_first_steps(tmp_path: Path, workers: int, zero_stage: int, precision: str) -> None:
    found = {}
    for name, layout in {"alone": (1, 0, precision), "spread": (workers, zero_stage, precision)}.items():
        folder = tmp_path / name
        folder.mkdir()
        spec = {"train": {"zero_stage": layout[1], "precision": precision}, "target": str(folder), "steps": 2}
        processes.run(step_and_save, layout[0], spec, folder)
        found[name] = tensors(folder)
    # bf16 gradients are rounded to 8 bits before they are added up.
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for key, value in found["alone"].items():
        assert (found["spread"][key] - value).norm() <= tolerance * value.norm(), key


def test_the_best_parameters_stay_as_long_as_a_checkpoint_may_ask_for_them(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    best = BestParameters(store, "training", Workplace(0, 1, torch.device("cpu")), None)
    written = tmp_path / "written"
    values = put(written, writers=1)

    def stored() -> list[int]:
        return sorted({int(info.key.split("/")[2]) for info in store.list("training/best/")})

    for step in (10, 20, 30, 40):
        best.put(step, written)
        best.checkpointed(step)
    assert stored() == [20, 30, 40], "the two checkpoints that Ray keeps and the one that is still being uploaded"
    (tmp_path / "back").mkdir()
    best.fetch(20, tmp_path / "back")
    back = Checkpoint(tmp_path / "back", "training", "f" * 64, SHAPES)
    assert torch.equal(back.tensor("parameter/a"), values["parameter/a"])
    with pytest.raises(TrainingError, match="the best parameters, of step 10, are no longer under"):
        best.fetch(10, tmp_path / "back")
