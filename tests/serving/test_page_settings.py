"""The service's page without a run, left out, and with settings that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydistill.errors import ConfigError
from tests.serving.conftest import World
from tests.serving.inspected_run import CONVERSATION, asked, looked, views


@pytest.mark.slow
def test_without_a_run_students_are_shown_and_turns_are_not(animals: World) -> None:
    from raydistill.serving.start import running

    config = animals.config(name="bare")
    with running(config):
        found = views(looked(config, conversation=CONVERSATION, k=2))
        assert list(found) == ["student"]
        assert {term["origin"] for term in found["student"]["terms"]} <= {"question", "history", "added"}
        assert json.loads(asked(config, "GET", "/turns")[2])["turns"] == []
        status, _, answer = asked(config, "POST", "/inspect", {"query_id": "c1<::>2"})
        assert (status, json.loads(answer)["error"]["code"]) == (404, "no_run")


@pytest.mark.slow
def test_the_page_can_be_left_out(animals: World) -> None:
    from raydistill.serving.start import running

    config = animals.config(name="closed", inspect=None)
    with running(config):
        assert asked(config, "GET", "/inspect")[0] == 404
        assert asked(config, "POST", "/inspect", {"conversation": ["a"]})[0] == 404


def test_a_missing_run_or_student_is_named_before_anything_starts(animals: World, tmp_path: Path) -> None:
    from raydistill.serving.start import check

    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        check(animals.config(inspect={"run": str(tmp_path / "nothing.yaml")}))
    with pytest.raises(ConfigError, match=r"inspect\.students\.big: the student .* terms, but the index"):
        check(animals.config(inspect={"students": {"big": "package:raydistill/demo/models/encoder"}}))
