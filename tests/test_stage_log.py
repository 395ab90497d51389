"""The log of a run's stages: in order, a skipped stage with the time it took, no stage of other rounds."""

from __future__ import annotations

from pathlib import Path

from raydistill.stage_log import log_stage, read_stages

ORDER = ("index", "train", "train round 2")


def test_stages_are_told_in_their_order_with_the_time_they_took(tmp_path: Path) -> None:
    root, prefix = str(tmp_path), "runs/small"
    assert read_stages(root, prefix) == []
    for stage, seconds in (("train round 2", 7.0), ("index", 3.456), ("train", 5.0)):
        log_stage(root, prefix, stage, seconds, skipped=False, order=ORDER)
    assert [(each["stage"], each["seconds"], each["skipped"]) for each in read_stages(root, prefix)] == [
        ("index", 3.46, False),
        ("train", 5.0, False),
        ("train round 2", 7.0, False),
    ]
    log_stage(root, prefix, "index", 0.01, skipped=True, order=ORDER[:2])
    log_stage(root, prefix, "train", 6.0, skipped=False, order=ORDER[:2])
    assert read_stages(root, prefix) == [
        {"stage": "index", "seconds": 3.46, "skipped": True},
        {"stage": "train", "seconds": 6.0, "skipped": False},
    ]


def test_a_stage_that_another_run_made_is_logged_as_skipped(tmp_path: Path) -> None:
    log_stage(str(tmp_path), "runs/other", "index", 0.02, skipped=True, order=ORDER)
    assert read_stages(str(tmp_path), "runs/other") == [{"stage": "index", "seconds": 0.02, "skipped": True}]
