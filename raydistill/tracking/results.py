"""What a finished report or comparison has for an experiment tracker: means, curves, settings, and the files themselves.

Read from `report.json` or `comparison.json`, wherever it lies, so that old runs can be sent as well as new ones. Intervals,
tests, parts of the turns and examples are in the files only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from raydistill.errors import DataError, StorageError
from raydistill.storage.files import read_input

_LATENCIES = ("encode_ms", "search_ms", "total_ms")


@dataclass(frozen=True)
class Curve:
    """Numbers along an axis, "step" (of the optimizer) or "depth" (of the turn): (place, value) pairs."""

    axis: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TrackedResults:
    """What a tracker is given.

    Attributes:
        name: of the run or comparison. identity: 16 hexadecimal digits of the file's SHA-256.
        settings: the resolved configuration, or what was compared; JSON-able.
        systems: system -> name of a number -> value, such as "student" -> "nDCG@10" -> 0.31; means over the judged turns.
        seconds: stage -> wall time.
        by_depth: system -> name -> the same by turn depth.
        curves: name, such as "train/loss" -> values by step.
        files: name -> bytes: the JSON itself and the page beside it.
    """

    name: str
    identity: str
    settings: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    by_depth: Mapping[str, Mapping[str, Curve]]
    curves: Mapping[str, Curve]
    files: Mapping[str, bytes]

    def numbers(self) -> dict[str, float]:
        """Return the numbers that have no axis, by full name, such as "student/nDCG@10"."""
        found = {f"{system}/{name}": value for system, own in self.systems.items() for name, value in own.items()}
        return {**found, **{f"seconds/{stage}": value for stage, value in self.seconds.items()}}

    def all_curves(self) -> dict[str, Curve]:
        """Return the curves by full name, such as "by_depth/student/nDCG@10" and "train/loss"."""
        found = {f"by_depth/{system}/{name}": curve for system, own in self.by_depth.items() for name, curve in own.items()}
        return {**found, **self.curves}

    def flat_settings(self) -> dict[str, str]:
        """Return the settings by dotted name; lists of sections are numbered, other lists are JSON."""
        return dict(_flat(self.settings))


def read_results(uri: str) -> TrackedResults:
    """Read report.json or comparison.json (path or s3://) and, if there is one, the page beside it.

    Raises:
        DataError: the file is neither.
        StorageError: it cannot be read.
    """
    content = read_input(uri)
    try:
        document = json.loads(content)
    except ValueError as error:
        raise DataError(f"{uri} is no JSON ({error}); name a report.json or a comparison.json") from None
    identity = hashlib.sha256(content).hexdigest()[:16]
    page = uri.removesuffix(".json") + ".html"
    files = {uri.rpartition("/")[2]: content}
    with suppress(StorageError):  # The JSON alone has every number.
        files[page.rpartition("/")[2]] = read_input(page)
    try:
        if "evaluation" in document:
            return _of_report(document, identity, files)
        if "rows" in document and "baseline" in document:
            return _of_comparison(document, identity, files)
    except (KeyError, TypeError) as error:
        raise DataError(f"{uri} lacks what a report has ({error!r}); write it again with this version") from None
    raise DataError(f"{uri} holds neither a report nor a comparison; name a report.json or a comparison.json")


def _of_report(document: Mapping[str, Any], identity: str, files: Mapping[str, bytes]) -> TrackedResults:
    systems, by_depth = {}, {}
    for system in document["evaluation"]["systems"]:
        systems[system["name"]] = {
            **{name: value["mean"] for name, value in system["measures"].items()},
            "FLOPS": system["flops"]["mean"],
            "L0": system["terms"]["mean"],
            **({"postings": system["postings"]["mean"]} if system.get("postings") else {}),
            "judged share": system["judged"],
            "missing": float(len(system["missing"])),
            **{f"{part} {at}": value for part in _LATENCIES for at, value in system[part].items()},
        }
        depths = system["by_depth"]
        found = {
            name: tuple((each["first"], each["measures"][name]["mean"]) for each in depths) for name in system["measures"]
        }
        found["FLOPS"] = tuple((each["first"], each["flops"]["mean"]) for each in depths)
        found["L0"] = tuple((each["first"], each["terms"]["mean"]) for each in depths)
        by_depth[system["name"]] = {name: Curve("depth", points) for name, points in found.items()}
    curves = {**_curves("train", document["training"]), **_curves("validation", document["validation"])}
    seconds = {stage["stage"]: float(stage["seconds"]) for stage in document["stages"]}
    return TrackedResults(document["run"], identity, document["config"], systems, seconds, by_depth, curves, files)


def _of_comparison(document: Mapping[str, Any], identity: str, files: Mapping[str, bytes]) -> TrackedResults:
    systems = {
        row["name"]: {
            **{name: value["mean"] for name, value in row["measures"].items()},
            **{f"{name} p_holm": value["p_holm"] for name, value in row["against"].items()},
            "judged share": row["judged"],
            "missing": float(len(row["missing"])),
        }
        for row in document["rows"]
    }
    settings = {name: document[name] for name in ("qrels", "runs", "baseline", "queries", "measures") if name in document}
    return TrackedResults("comparison", identity, settings, systems, {}, {}, {}, files)


def _curves(prefix: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                points.setdefault(f"{prefix}/{name}", []).append((int(record["step"]), float(value)))
    return {name: Curve("step", tuple(found)) for name, found in points.items()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value):
                yield from _flat(each, f"{prefix}{name}.{number}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
