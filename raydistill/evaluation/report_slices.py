"""The report's section on parts of the turns: by what was said before, by change of topic, and the conversations that
differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.evaluation import page
from raydistill.evaluation.summary import Metrics, best_system

_CONVERSATIONS = 6


def slices_section(metrics: Metrics) -> str:
    """Return tables of the first measure: by history length, and where student and best teacher differ most; nothing for
    metrics of before there were slices."""
    found = {each["name"]: each for each in metrics.get("slices", [])}
    if not found:
        return ""
    measure = metrics["measures"][0]
    names = [system["name"] for role in ("baseline", "teacher", "student") if (system := best_system(metrics, role))]
    blocks = [
        page.figure(
            f"{measure} by history length",
            f"Grouped by {found['history']['unit']}, answers included; the best system of each kind.",
            page.table(["words", "turns", *names], [_row(group, names, measure) for group in found["history"]["groups"]]),
        )
    ]
    if "reading" in found:
        blocks.append(
            page.figure(
                f"{measure} by what the student read",
                "Conversations that fit into the student's input, and those whose oldest turns were cut.",
                page.table(
                    ["conversation", "turns", *names], [_row(group, names, measure) for group in found["reading"]["groups"]]
                ),
            )
        )
    if "topic" in found:
        blocks.append(
            page.figure(
                f"{measure} by change of topic",
                "Against the turn before: the first topic of a conversation, the same one, or a new one. Turns whose topic "
                "the files do not tell are in no group.",
                page.table(["topic", "turns", *names], [_row(group, names, measure) for group in found["topic"]["groups"]]),
            )
        )
    student, teacher = best_system(metrics, "student"), best_system(metrics, "teacher")
    if student is not None and teacher is not None:
        pair = [student["name"], teacher["name"]]
        groups = _extremes(found["conversation"]["groups"], pair[0], pair[1], measure)
        blocks.append(
            page.figure(
                f"{measure} by conversation",
                f"The conversations in which {pair[0]} and {pair[1]} differ most, of "
                f"{len(found['conversation']['groups'])}.",
                page.table(
                    ["conversation", "turns", *pair, "difference"], [_row(group, pair, measure, True) for group in groups]
                ),
            )
        )
    return page.section("Parts of the turns", page.grid(blocks))


def _row(group: Mapping[str, Any], names: Sequence[str], measure: str, difference: bool = False) -> str:
    values = [group["means"][name][measure] for name in names]
    cells = [page.cell(str(group["queries"])), *(page.cell(f"{value:.3f}") for value in values)]
    if difference:
        cells.append(page.cell(f"{values[0] - values[1]:+.3f}"))
    return page.row(group["label"], cells)


def _extremes(groups: Sequence[Mapping[str, Any]], one: str, other: str, measure: str) -> list[Mapping[str, Any]]:
    """Return the conversations with the largest differences either way, the student's best first."""
    ordered = sorted(groups, key=lambda group: group["means"][other][measure] - group["means"][one][measure])
    if len(ordered) <= _CONVERSATIONS:
        return ordered
    half = _CONVERSATIONS // 2
    return [*ordered[:half], *ordered[-half:]]
