"""The report is one file that refers to nothing, runs nothing, escapes everything and shows its charts."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from raydistill.config import DistillConfig, EvaluateConfig
from raydistill.evaluation.comparison import compare_runs, comparison_json
from raydistill.evaluation.report import build_report, console_table
from raydistill.evaluation.runs import Run
from raydistill.evaluation.summary import Metrics

HOSTILE = "</svg></td><script>alert('x')</script><img src=x onerror=alert(1)>\"&'"
TRAINING = [
    {
        "step": step,
        "loss": 3.0 / step,
        "kld": 2.0 / step,
        "infonce": 4.0 / step,
        "l0": 90.0 / step,
        "learning_rate": 1e-5 * step,
        "flops_lambda": 0.0,
    }
    for step in range(1, 40)
]
VALIDATION = [{"step": step, "nDCG@10": step / 100, "R@100": step / 50, "l0": 40.0, "flops": 2.0} for step in (10, 20)]
STAGES = [{"stage": "teach", "seconds": 2.0, "skipped": True}, {"stage": "train", "seconds": 4000.0, "skipped": False}]
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


class Elements(HTMLParser):
    """Collects start tags with attributes, checks that they are closed in order, and collects the text."""

    VOID = frozenset({"meta", "br", "wbr", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


@pytest.fixture
def html(make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics]) -> str:
    return build_report(make_config(), make_metrics(), TRAINING, STAGES, VALIDATION, created=WHEN).html


def test_the_page_refers_to_nothing_and_runs_nothing(html: str) -> None:
    assert not re.search(r"(https?:)?//", re.sub(r"<code>.*?</code>", "", html, flags=re.S))
    elements = Elements(html)
    assert {name for name, _ in elements.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "img", "base"})
    for _, attributes in elements.tags:
        assert {"src", "href", "srcset", "xlink:href"}.isdisjoint(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html
    assert "@import" not in html


def test_hostile_text_stays_text(make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics]) -> None:
    metrics = make_metrics(question=HOSTILE, teacher=HOSTILE)
    stages = [{"stage": HOSTILE, "seconds": 1.0, "skipped": False}]
    config = make_config(student={"model": HOSTILE})
    html = build_report(config, metrics, TRAINING, stages, created=WHEN).html
    elements = Elements(html)
    assert "script" not in {name for name, _ in elements.tags}
    assert not list(elements.named("img"))
    assert any(HOSTILE in text for text in elements.text)  # whole and readable where there is room for it


def test_charts_are_well_formed_described_and_inside_their_box(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    # depth, FLOPS, recall, L0; loss, L0, learning rate; validation: measures, L0, FLOPS; failures; stages
    assert len(drawings) == 12
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.attrib["aria-label"]
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        for text in root.iter("text"):
            assert 0 <= float(text.attrib["x"]) <= width
            assert 0 <= float(text.attrib["y"]) <= height
        assert "nan" not in drawing
    assert 'class="line c0' in html
    assert 'class="marker c0' in html


def test_numbers_of_the_metrics_are_on_the_page(html: str, make_metrics: Callable[..., Metrics]) -> None:
    text = " ".join(Elements(html).text)
    metrics = make_metrics()
    for system in metrics["systems"]:
        assert system["name"] in text
        for interval in system["measures"].values():
            assert f"{interval['mean']:.3f}" in text
    for expected in (
        "trial",
        "24 judged turns",
        "4 turns without judgements",
        "2026-01-02 03:04",
        "1 h 6 min",
        "already done",
        "chatty 2",
    ):
        assert expected in text


def test_what_teachers_cost_and_are_worth_is_shown_where_it_is_known(
    make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics], html: str
) -> None:
    teaching = [
        {"teacher": "big", "set": "train", "engine": "openai", "queries": 1200, "cached": 300, "prompt_tokens": 34567}
        | {"retried": 7, "failed": 4, "generated_tokens": 8901, "over_budget": 11, "estimated_dollars": 2.5},
        {"teacher": "big", "set": "test", "engine": "openai", "queries": 34, "prompt_tokens": 433},
        {"teacher": "told", "set": "train", "engine": "recorded", "queries": 999},
    ]
    counts = {"turns": 40, "passages": 4100, "scored": 4007, "prompts": 4100, "failed": 93, "prompt_tokens": 777000}
    scoring = [{"round": number, "scorer": "judge", "kind": "llm", **counts} for number in (1, 2)]
    runs = [Run(name, {"q": ((passage, 1.0),)}) for name, passage in (("big", "d"), ("told", "e"), ("mean", "d"))]
    kinds = {"big": "teacher", "told": "teacher", "mean": "combination"}
    found = compare_runs(runs, {"q": {"d": 1}}, EvaluateConfig(measures=("RR",)), lambda *_: "big", kinds)
    report = build_report(
        make_config(),
        make_metrics(),
        created=WHEN,
        teaching=teaching,
        scoring=scoring,
        ablation=json.loads(comparison_json(found, {})),
    )
    text = " ".join(Elements(report.html).text)
    for expected in ("1,234", "300", "35,000", "8,901", "11", "2.50", "What each teacher is worth", "All together", "0.000"):
        assert expected in text
    for expected in ("What the scorers read", "judge (llm)", "8,200", "8,014", "186", "1,554,000"):
        assert expected in text
    assert "999" not in text, "what is recorded costs nothing"
    content = json.loads(report.json)
    assert content["teaching"] == teaching
    assert content["scoring"] == scoring
    assert [row["name"] for row in content["ablation"]["rows"]] == ["big", "told", "mean"]
    assert "What the teachers cost" not in html
    assert "What the scorers read" not in html
    assert "What each teacher is worth" not in html


def test_the_front_joins_what_is_best_at_its_cost(html: str, make_metrics: Callable[..., Metrics]) -> None:
    measure = "nDCG@3"
    points = [(each["flops"]["mean"], each["measures"][measure]["mean"]) for each in make_metrics()["systems"]]
    best = [point for point in points if not any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in points)]
    assert 1 < len(best) < len(points)
    [drawing] = [each for each in re.findall(r"<svg.*?</svg>", html, flags=re.S) if "against its FLOPS" in each]
    [line] = re.findall(r'class="front" d="([^"]*)"', drawing)
    assert line.count("V") == len(best) - 1
    assert drawing.count('class="whisker') == len(points), "every system keeps its name and interval"


def test_light_and_dark_are_both_styled(html: str) -> None:
    assert "prefers-color-scheme:dark" in html
    assert html.count("color-scheme:dark") >= 2
    variables = set(re.findall(r"var\((--[a-z0-9]+)\)", html))
    for scheme in re.findall(r"(--paper:[^}]*)}", html):
        assert variables <= set(re.findall(r"(--[a-z0-9]+):", scheme))


def test_without_training_stages_student_or_teachers(
    make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics]
) -> None:
    html = build_report(make_config(), make_metrics(roles=("baseline",)), created=WHEN).html
    text = " ".join(Elements(html).text)
    assert "full conversation" in text
    assert "optimizer step" not in text
    assert "The student against" not in text


@pytest.mark.parametrize("records", [[{"step": 1, "loss": 1.0}], [{"step": 1, "loss": float("nan")}, {"step": 2}], []])
def test_training_records_too_few_to_draw_are_left_out(
    records: list[dict[str, Any]],
    make_config: Callable[..., DistillConfig],
    make_metrics: Callable[..., Metrics],
) -> None:
    html = build_report(make_config(), make_metrics(), records, created=WHEN).html
    assert "optimizer step" not in html


def test_json_holds_everything(make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics]) -> None:
    metrics = make_metrics()
    content = json.loads(build_report(make_config(), metrics, TRAINING, STAGES, created=WHEN).json)
    assert content["run"] == "trial"
    assert content["evaluation"] == metrics
    assert content["training"] == TRAINING
    assert content["stages"] == STAGES
    assert DistillConfig.model_validate(content["config"]) == make_config()


def test_console_table_shows_every_system_and_brackets_as_they_are(make_metrics: Callable[..., Metrics]) -> None:
    metrics = make_metrics(teacher="llm[bold]")
    out = io.StringIO()
    Console(file=out, width=120).print(console_table(metrics))
    for system in metrics["systems"]:
        assert system["name"] in out.getvalue()
        assert f"{system['measures']['nDCG@3']['mean']:.3f}" in out.getvalue()
