"""From a study file to its trials: complete configurations, each with an identity of its own. Nothing is run here.

A trial's identity depends on what its configuration says and not on where it stands in the study, so a study that grows
keeps its finished trials, and two points that say the same are one trial.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raydistill.config import DistillConfig
from raydistill.config.tuning import LABEL, Range, StudyConfig, TuneConfig
from raydistill.config_loading import apply_override, build_config, plain_tree, read_tree, set_field, validated
from raydistill.errors import ConfigError
from raydistill.storage.artifacts import fingerprint

BASE = "base"
_STUDY_FIELDS = ("tune.", "changes.")
_MOST_DRAWS = 100


@dataclass(frozen=True)
class Trial:
    """One configuration to train and measure.

    Attributes:
        label: what distinguishes it, for tables and plots.
        lines: names of the lines that it is a point of, with its label there; the base is a point of none.
        changes: section.field -> value against the base.
        config: the complete configuration; its run is {study}-{identity}.
        identity: 10 hex digits.
    """

    label: str
    lines: Mapping[str, str]
    changes: Mapping[str, Any]
    config: DistillConfig
    identity: str


@dataclass(frozen=True)
class Study:
    """A study with its trials, the base first.

    Attributes:
        tune: its settings.
        base: the configuration that trials change, `changes` of the study applied.
        trials: at least one, identities distinct.
    """

    tune: TuneConfig
    base: DistillConfig
    trials: tuple[Trial, ...]


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and plan its trials.

    Overrides `tune.field=value` and `changes.section.field=value` change the study, all others the base, which trials change
    in their turn. Raises ConfigError naming file, trial and field.
    """
    path = Path(path).expanduser().absolute()
    tree = read_tree(path)
    if "tune" not in tree and "data" in tree:
        raise ConfigError(f"{path} is no study but a configuration of the chain; a study names it as its base")
    for_study = [override for override in overrides if override.startswith(_STUDY_FIELDS)]
    for override in for_study:
        if override.startswith("changes."):
            # The fields of `changes` are dotted names themselves.
            changed: dict[str, Any] = {}
            apply_override(changed, f"value={override.partition('=')[2]}")
            tree.setdefault("changes", {})[override.partition("=")[0].removeprefix("changes.")] = changed["value"]
        else:
            apply_override(tree, override)
    study = validated(StudyConfig, tree, path.parent, str(path))
    base = read_tree(Path(study.base))
    for field, value in study.changes.items():
        _change(base, field, value, f"{path}: changes")
    rest = [override for override in overrides if override not in for_study]
    return plan_study(study.tune, base, rest, Path(study.base).parent, str(path))


def plan_study(tune: TuneConfig, base: Mapping[str, Any], overrides: Sequence[str], folder: Path, place: str) -> Study:
    """Return the trials of a study over a base configuration given as a tree of plain values; see `load_study`."""
    given = plain_tree(base)
    for override in overrides:
        apply_override(given, override)
    whole = build_config(base, overrides, folder, place)
    planned: dict[str, Trial] = {}
    points = [_Point(BASE, {}), *_line_points(tune), *_space_points(tune)]
    for label, changes, line, label_there in points:
        tree = plain_tree(given)
        where = f"{place}: trial {label!r}"
        for field, value in changes.items():
            if field == "run" or field == "root":
                raise ConfigError(f"{where} changes {field}, which every trial gets from the study; leave it out")
            _change(tree, field, value, where)
        config = build_config(tree, (), folder, where)
        identity = fingerprint("trial", 1, config.model_copy(update={"run": BASE}), {})[:10]
        if identity not in planned:
            run = f"{tune.name}-{identity}"
            planned[identity] = Trial(label, {}, changes, config.model_copy(update={"run": run}), identity)
        if line:
            trial = planned[identity]
            planned[identity] = replace(trial, lines={**trial.lines, line: label_there})
    trials = tuple(planned.values())
    if tune.measured_on == "validation" and any(trial.config.data.validation is None for trial in trials):
        raise ConfigError(
            f"{place}: trials are measured on validation turns, and the base has no data.validation; set it, for instance "
            "{share: 0.2}"
        )
    for trial in trials:
        unmeasured = [name for name in tune.measures if name not in trial.config.evaluate.measures]
        if unmeasured:
            raise ConfigError(
                f"{place}: tune.measures has {unmeasured[0]}, and trial {trial.label!r} measures only "
                f"{', '.join(trial.config.evaluate.measures)}; add it to evaluate.measures of the base, or take one of these"
            )
    return Study(tune, whole, _told_apart(trials))


def point_label(point: Mapping[str, Any]) -> str:
    """Return the label of a point of a line: its own, or what it changes."""
    return str(point.get(LABEL, _label({field: value for field, value in point.items() if field != LABEL})))


def _change(tree: dict[str, Any], field: str, value: Any, place: str) -> None:
    """Set a field as a study names it. Raises ConfigError for a whole section, whose other fields would be lost."""
    if isinstance(value, dict) and isinstance(tree.get(field), dict):
        inner = next(iter(value), "FIELD")
        raise ConfigError(
            f"{place}: {field} is a whole section, and what it does not name would fall back to the defaults; name the "
            f"fields, such as {field}.{inner}: {value.get(inner)!r}"
        )
    set_field(tree, field, value, place)


class _Point(NamedTuple):
    """A point of a study: how the trial is called, what it changes, and the line it is on with its label there."""

    label: str
    changes: dict[str, Any]
    line: str = ""
    label_there: str = ""


def _line_points(tune: TuneConfig) -> Iterator[_Point]:
    for line, points in tune.lines.items():
        for point in points:
            label = point_label(point)
            changes = {field: value for field, value in point.items() if field != LABEL}
            yield _Point(f"{line}: {label}" if LABEL in point else label, changes, line, label)


def _space_points(tune: TuneConfig) -> Iterator[_Point]:
    """Yield the combinations of `space`: all of them in order, or `samples` distinct ones."""
    if not tune.space:
        return
    if tune.samples is None or tune.samples >= tune.combinations:
        lists = [each for each in tune.space.values() if not isinstance(each, Range)]
        for values in itertools.product(*lists):
            changes = dict(zip(tune.space, values, strict=True))
            yield _Point(_label(changes), changes)
        return
    seen: set[str] = set()
    for draw in range(tune.samples * _MOST_DRAWS):
        random = np.random.default_rng([tune.seed, draw])
        changes = {
            field: each.at(float(random.random())) if isinstance(each, Range) else each[int(random.integers(len(each)))]
            for field, each in tune.space.items()
        }
        label = _label(changes)
        if label not in seen:
            seen.add(label)
            yield _Point(label, changes)
        if len(seen) == tune.samples:
            return


def _label(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{field.rpartition('.')[2]} {_shown(value)}" for field, value in changes.items()) or BASE


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _told_apart(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Put the line before labels that several trials have."""
    labels = [trial.label for trial in trials]
    return tuple(
        replace(trial, label=f"{next(iter(trial.lines))}: {trial.label}")
        if labels.count(trial.label) > 1 and trial.lines
        else trial
        for trial in trials
    )
