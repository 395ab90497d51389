"""Who may import whom (the house rules), read from the source with ast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "raydistill"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# The distributed module of each room, and the one way all of them run shards.
USES_RAY = {
    "actor_pool.py",
    "distill/fitting.py",
    "index/fan_out_actors.py",
    "serving/service.py",
    "serving/start.py",
    "teachers/engine_actor.py",
    "tuning/study.py",
}
# Stages: what they have Ray do goes through those.
STAGE_MODULES = {
    "teachers/pool.py",
    "index/corpus.py",
    "index/build.py",
    "index/encode_parts.py",
    "index/change_job.py",
    "index/mine.py",
    "index/fan_out.py",
    "index/exchange/export.py",
    "index/exchange/load.py",
    "index/approximate.py",
    "index/gold_texts.py",
    "distill/document_mining.py",
    "distill/document_train.py",
    "distill/seeds.py",
    "distill/train.py",
    "evaluation/evaluate.py",
    "scoring/context.py",
    "scoring/stage.py",
    "preparation.py",
    "synthesis/stage.py",
}
JOINS_OR_CHECKS_A_CLUSTER = {
    "pipeline.py",
    "preflight.py",
    "cli_teachers.py",
    "side_by_side.py",
    "tuning/search_engine.py",
}
TOP = {
    "pipeline",
    "inputs",
    "preflight",
    "run_report",
    "plan",
    "teaching",
    "inspector",
    "cli",
    "cli_change",
    "cli_compare",
    "cli_exchange",
    "cli_inspect",
    "cli_synthesis",
    "cli_track",
    "cli_teachers",
    "cli_upkeep",
    "cli_writer",
    "demo",
    "synthesis",
    "tuning",
}
GROUND = {"config", "config_loading", "errors", "progress", "model_source"}
ALLOWED_ROOMS: dict[str, set[str]] = {
    "config": set(),
    "storage": set(),
    "conversations": {"storage"},
    "encoders": {"storage", "conversations"},
    "teachers": {"storage", "conversations"},
    "index": {"storage", "conversations", "encoders", "teachers"},
    "tracking": {"storage"},
    "distill": {"storage", "conversations", "encoders", "index", "teachers", "evaluation", "tracking"},
    "reranking": {"conversations"},
    "scoring": {"storage", "conversations", "encoders", "index", "teachers", "reranking"},
    "evaluation": {"storage", "conversations", "encoders", "index", "teachers", "reranking"},
    "serving": {"storage", "conversations", "encoders", "index", "reranking", "evaluation"},
}
# Pure modules of other rooms that a room's pure modules may use: values and functions, never a stage.
STAGES = {
    "teachers.pool",
    "index.corpus",
    "index.build",
    "index.encode_parts",
    "index.change_job",
    "index.mine",
    "index.exchange.export",
    "index.exchange.load",
    "index.approximate",
    "index.gold_texts",
    "distill.train",
    "distill.seeds",
    "distill.document_mining",
    "distill.document_train",
    "evaluation.evaluate",
}


def imported(module: Path) -> set[str]:
    """Return every absolute module name a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    return {name.removeprefix("raydistill.") for name in names if name.startswith("raydistill.")}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_distributed_modules_import_ray(module: Path) -> None:
    names = imported(module)
    if any(name == "ray" or name.startswith("ray.") for name in names):
        assert module.as_posix() in USES_RAY
    if any(name.startswith("actor_pool") for name in own(names)):
        assert module.as_posix() in USES_RAY | STAGE_MODULES | JOINS_OR_CHECKS_A_CLUSTER


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_storage_room_imports_boto3(module: Path) -> None:
    if any(name.split(".")[0] in {"boto3", "botocore"} for name in imported(module)):
        assert module.parts[0] == "storage"


@pytest.mark.parametrize("module", [m for m in MODULES if len(m.parts) > 1 and m.parts[0] not in TOP], ids=str)
def test_rooms_import_only_rooms_below_them(module: Path) -> None:
    room = module.parts[0]
    for name in own(imported(module)):
        other = name.split(".")[0]
        if other in {room, "__version__", "actor_pool", "side_by_side"} | GROUND:
            continue
        assert other not in TOP, f"{module} imports {name}, which sits on top"
        assert other in ALLOWED_ROOMS[room], f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.as_posix() not in USES_RAY | STAGE_MODULES], ids=str)
def test_pure_modules_import_no_stage(module: Path) -> None:
    if module.parts[0].removesuffix(".py") in TOP - {"inputs", "cli"} or module.parts[0].startswith("cli_"):
        return
    for name in own(imported(module)):
        assert not any(name == stage or name.startswith(f"{stage}.") for stage in STAGES), f"{module} imports {name}"


def test_the_ground_floor_knows_nobody_above_it() -> None:
    ground = [m for m in MODULES if m.parts[0].removesuffix(".py") in GROUND]
    assert len(ground) > len(GROUND)
    for module in ground:
        # A model may be a student in a store, which knows nothing of models.
        below = GROUND | ({"storage"} if module.stem == "model_source" else set())
        assert {name.split(".")[0] for name in own(imported(module))} <= below


def test_modules_stay_small_enough_to_hold_in_the_head() -> None:
    long = {str(m): n for m in MODULES if (n := len((PACKAGE / m).read_text().splitlines())) > 420}
    assert not long


def test_every_module_says_what_lives_in_it() -> None:
    silent = [
        str(module)
        for module in MODULES
        if not (PACKAGE / module).name.startswith("__") and not ast.get_docstring(ast.parse((PACKAGE / module).read_text()))
    ]
    assert not silent


def test_no_two_test_modules_share_a_name() -> None:
    """Pytest imports them by their name alone: the second of two would fail, or be read as the first."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, times in names.items() if times > 1] == []


def test_a_training_worker_loads_no_compiler_and_no_data_frames() -> None:
    """Without validation it only joins stored vectors: numba and pandas would be 100 MB more in each of many workers."""
    loaded = "import sys, raydistill.distill.loop, raydistill.index.forward; print(*sys.modules)"
    names = set(subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split())
    assert {"torch", "pyarrow"} <= names
    assert not names & {"numba", "llvmlite", "pandas"}


def test_stages_load_torch_only_where_a_model_is_used() -> None:
    """Torch and transformers are 3 s of every actor's start, and planning, mining and joining need neither."""
    light = sorted(STAGE_MODULES - {"distill/train.py", "distill/seeds.py", "distill/document_train.py"})
    stages = [f"raydistill.{name.removesuffix('.py').replace('/', '.')}" for name in light]
    loaded = f"import sys, raydistill.pipeline, {', '.join(stages)}; print(*sys.modules)"
    names = set(subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split())
    assert set(stages) <= names
    assert not names & {"torch", "transformers"}
