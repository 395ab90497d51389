"""The report in a real browser: all charts are drawn, nothing complains, light and dark are readable, a phone is enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import DistillConfig
from raydistill.evaluation.report import build_report
from raydistill.evaluation.summary import Metrics
from tests.headless import headless_chromium

TRAINING = [{"step": step, "loss": 3.0 / step, "kld": 2.0 / step, "l0": 90.0 / step} for step in range(1, 40)]
VALIDATION = [{"step": step, "nDCG@10": step / 100, "l0": 40.0, "flops": 2.0} for step in (10, 20)]
STAGES = [{"stage": "train", "seconds": 4000.0, "skipped": False}]
NARROW = 390
# WCAG 2: contrast of text that is not large.
LEAST_CONTRAST = 4.5
WORST_CONTRAST = """
const parts = text => text.match(/[\\d.]+/g).map(Number);
const light = colour => {
  const gamma = each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
  const linear = colour.map(each => gamma(each / 255));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
// What lies behind a text: all backgrounds up to the page's, the see-through ones mixed with what is below.
const behind = node => {
  if (!node) return [255, 255, 255];
  const [red, green, blue, alpha = 1] = parts(getComputedStyle(node).backgroundColor);
  if (alpha === 1) return [red, green, blue];
  return behind(node.parentElement).map((below, place) => alpha * [red, green, blue][place] + (1 - alpha) * below);
};
let worst = [99, ""];
for (const node of document.querySelectorAll("h1, h2, h3, p, td, th, dd, dt, li, figcaption")) {
  if (!node.offsetParent || !node.textContent.trim()) continue;
  const [high, low] = [light(parts(getComputedStyle(node).color).slice(0, 3)), light(behind(node))].sort((a, b) => b - a);
  const contrast = (high + 0.05) / (low + 0.05);
  if (contrast < worst[0]) worst = [contrast, node.textContent.trim().slice(0, 60)];
}
return worst;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_chromium() as started:
        yield started


@pytest.fixture
def page(
    browser: Any, tmp_path: Path, make_config: Callable[..., DistillConfig], make_metrics: Callable[..., Metrics]
) -> Iterator[Any]:
    """The open page; after the test the console must be empty."""
    report = build_report(make_config(), make_metrics(), TRAINING, STAGES, VALIDATION)
    (tmp_path / "report.html").write_text(report.html)
    browser.get_log("browser")
    browser.get(f"file://{tmp_path / 'report.html'}")
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert browser.get_log("browser") == []


def test_every_chart_is_drawn_with_its_lines_and_words(page: Any) -> None:
    charts = page.find_elements("css selector", "svg")
    assert len(charts) == len(re.findall("<svg", page.page_source)) > 8
    for chart in charts:
        assert chart.is_displayed()
        assert chart.size["width"] > 100
        assert chart.size["height"] > 30
        assert chart.find_elements("css selector", "text")
        drawn = chart.find_elements("css selector", "path, polyline, rect, circle, line")
        assert any(each.size["width"] > 0 or each.size["height"] > 0 for each in drawn)
    assert page.execute_script("return document.querySelectorAll('script').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(page: Any, scheme: str) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    contrast, words = page.execute_script(WORST_CONTRAST)
    assert contrast >= LEAST_CONTRAST, words
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = sum(map(float, re.findall(r"[\d.]+", ground)[:3])) < 3 * 128
    assert dark == (scheme == "dark")


def test_a_phone_shows_it_without_scrolling_sideways(page: Any) -> None:
    metrics = {"width": NARROW, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.execute_script("return document.documentElement.scrollWidth") <= NARROW
    # A wide table scrolls in its own box.
    wide = [table for table in page.find_elements("css selector", "table") if table.size["width"] > NARROW]
    for table in wide:
        box = page.execute_script("return getComputedStyle(arguments[0].parentElement).overflowX", table)
        assert box in ("auto", "scroll")
