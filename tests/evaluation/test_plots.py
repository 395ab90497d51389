"""Charts: round ticks, labels that do not collide, shapes inside the plot, text escaped."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.evaluation.plots import (
    WIDTH,
    Bar,
    Point,
    Series,
    bar_chart,
    line_chart,
    number_text,
    round_ticks,
    scatter_chart,
)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_enclose_the_data_at_equal_steps_and_are_few(low: float, width: float) -> None:
    high = low + width
    ticks = round_ticks(low, high)
    step = ticks[1] - ticks[0]
    slack = 1e-6 * max(abs(low), abs(high), step)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert all(b - a == pytest.approx(step, rel=1e-3) for a, b in itertools.pairwise(ticks))


def test_ticks_are_numbers_that_people_write() -> None:
    assert round_ticks(0, 0.87) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_ticks(0, 0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_ticks(10, 2390, inside=True) == [500.0, 1000.0, 1500.0, 2000.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (2e-5, "2.0e-5"), (1500, "1500"), (25_000, "25k"), (3.2e6, "3.2M"), (-4, "-4")],
)
def test_number_texts(value: float, text: str) -> None:
    assert number_text(value) == text


def label_boxes(drawing: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(drawing)
    return [
        (float(text.attrib["x"]), float(text.attrib["y"])) for text in root.iter("text") if "name" in text.attrib["class"]
    ]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_names_at_the_ends_of_lines_never_overlap_and_stay_inside(ends: list[float]) -> None:
    series = [Series(f"line {number}", number, [0.0, 1.0], [0.5, end]) for number, end in enumerate(ends)]
    heights = sorted(y for _, y in label_boxes(line_chart("d", series, "x", "y")))
    assert len(heights) == len(ends)
    assert all(lower - upper >= 14.9 for upper, lower in itertools.pairwise(heights))
    assert heights[0] > 12
    assert heights[-1] < 245


def test_a_line_goes_through_its_points() -> None:
    drawing = line_chart("d", [Series("a", 0, [0.0, 1.0, 2.0], [0.0, 1.0, 0.5])], "x", "y")
    found = re.search(r'class="line[^"]*" d="M([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+)"', drawing)
    assert found is not None
    x0, y0, x1, y1, x2, y2 = (float(number) for number in found.groups())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)


def test_a_wide_range_of_costs_is_drawn_on_a_log_scale_and_says_so() -> None:
    points = [Point("a", 0, 0.4, 0.5, 0.4, 0.6), Point("b", 1, 4.0, 0.3, 0.2, 0.4), Point("c", 2, 40.0, 0.3, 0.2, 0.4)]
    drawing = scatter_chart("d", points, "FLOPS", "nDCG")
    assert "FLOPS (log scale)" in drawing
    places = [float(x) for x in re.findall(r'class="whisker[^"]*" d="M([\d.]+)', drawing)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert "log scale" not in scatter_chart("d", points[:1], "FLOPS", "nDCG")
    assert "log scale" not in scatter_chart("d", [*points, Point("z", 0, 0.0, 0.1, 0.0, 0.2)], "FLOPS", "nDCG")


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=8))
def test_any_points_give_a_finite_drawing(places: list[tuple[float, float]]) -> None:
    points = [Point(f"system {number}", number % 6, x, y, y * 0.9, y * 1.1) for number, (x, y) in enumerate(places)]
    root = ElementTree.fromstring(scatter_chart("d", points, "x", "y"))
    for element in root.iter():
        for value in element.attrib.values():
            assert "nan" not in value
            assert "inf" not in value


def test_point_names_avoid_each_other() -> None:
    points = [Point(f"system{number}", 0, 1.0 + number * 0.01, 0.5, 0.5, 0.5) for number in range(4)]
    boxes = label_boxes(scatter_chart("d", points, "x", "y"))
    for place, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:place]:
            assert abs(y - other_y) >= 12 or abs(x - other_x) >= 50


def test_bars_are_as_long_as_their_values() -> None:
    drawing = bar_chart("d", [Bar("a", 4.0, "4 s"), Bar("b", 1.0, "1 s", faint=True), Bar("none", 0.0, "0 s")])
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', drawing)]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    assert max(widths) < WIDTH
    assert "faint" in drawing


def test_long_and_hostile_names_are_shortened_escaped_and_whole_in_the_tooltip() -> None:
    name = "<b>& a very long name of a system that does not fit"
    for drawing in (
        bar_chart("d", [Bar(name, 1.0, "1")]),
        scatter_chart("d", [Point(name, 0, 1.0, 0.5, 0.4, 0.6)], "x", "y"),
        line_chart("d", [Series(name, 0, [0.0, 1.0], [1.0, 2.0]), Series("b", 1, [0.0, 1.0], [2.0, 1.0])], "x", "y"),
    ):
        texts = ["".join(text.itertext()) for text in ElementTree.fromstring(drawing).iter()]
        assert any("…" in text for text in texts)
        assert name in texts or any(name in text for text in texts)


def test_one_point_makes_a_chart() -> None:
    drawing = line_chart("d", [Series("a", 0, [3.0], [0.2])], "x", "y")
    assert not math.isnan(float(ElementTree.fromstring(drawing).attrib["viewBox"].split()[2]))
    assert "nan" not in drawing
