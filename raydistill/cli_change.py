"""The sub-commands that change an index: append, replace, delete, compact. What they do is in raydistill.index."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raydistill.cli_writer import writing_to
from raydistill.config_loading import load_config

if TYPE_CHECKING:
    from raydistill.config import CorpusConfig, DistillConfig
    from raydistill.index.change_job import ChangeReport


def add_change_commands(commands: Any) -> None:
    """Add the sub-commands to the parser of the command line."""
    append = _command(commands, "append", _append, "add passages with new ids to the index")
    replace = _command(commands, "replace", _replace, "give passages of the index new content, by id")
    for parser in (append, replace):
        parser.add_argument(
            "--passages",
            action="append",
            required=True,
            metavar="FILE",
            help="passages in the format of data.corpus (data.corpus_format); may be given several times, a * expands",
        )
    delete = _command(commands, "delete", _delete, "delete passages from the index, by id")
    delete.add_argument("--id", action="append", default=[], metavar="ID", help="id to delete; may be given several times")
    delete.add_argument("--ids", metavar="FILE", help="file with an id a line")
    for parser in (replace, delete):
        parser.add_argument(
            "--missing",
            choices=["error", "ok"],
            default="error",
            help="what to do about ids that are not in the index: refuse (default), or add (replace) or pass over (delete)",
        )
    _command(commands, "compact", _compact, "merge small segments of the index, and drop deleted passages (index.change)")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, DistillConfig], ChangeReport], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary)
    parser.add_argument("--config", required=True, help="YAML file that the index was built with; see jobs/configs")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the configuration")
    parser.set_defaults(command=_run, run=run, name=name)
    return parser


def _run(options: argparse.Namespace) -> int:
    from raydistill.index.change_job import drift_advice

    config = load_config(options.config, options.overrides)
    with writing_to(config.root, config.single_writer, f"raydistill {options.name}"):
        report = options.run(options, config)
    console = Console(soft_wrap=True)
    for line in _lines(report):
        console.print(line, highlight=False, markup=False)
    advice = drift_advice(report.version, config.index)
    if advice:
        console.print(advice, highlight=False, markup=False)
    return 0


def _lines(report: ChangeReport) -> list[str]:
    version = report.version
    made = version.metadata.get("change", {})
    lines = [f"{version.uri}: {version.live} passages in {len(version.segments)} segments, {version.deleted} deleted"]
    if not report.changed:
        return ["nothing to do, or done before", *lines]
    if version.metadata.get("base") == version.metadata.get("compaction", {}).get("base"):
        return lines
    lines.insert(0, f"{made['added']} passages added, {made['deleted']} deleted")
    if made["unknown"]:
        outcome = "added" if made["operation"] == "replace" else "passed over"
        named = ", ".join(map(repr, made["examples"])) + (", …" if made["unknown"] > len(made["examples"]) else "")
        lines.append(f"{made['unknown']} ids were not in the index and were {outcome}: {named}")
    return lines


def _passages(options: argparse.Namespace, config: DistillConfig) -> CorpusConfig:
    from raydistill.config import CorpusConfig

    # However data.corpus is read, so are these.
    as_corpus = {name: getattr(config.data, name) for name in CorpusConfig.model_fields}
    return CorpusConfig(**{**as_corpus, "corpus": tuple(map(_located, options.passages))})


def _located(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _append(options: argparse.Namespace, config: DistillConfig) -> ChangeReport:
    from raydistill.index.change_job import append_passages

    return append_passages(config, _passages(options, config))


def _replace(options: argparse.Namespace, config: DistillConfig) -> ChangeReport:
    from raydistill.index.change_job import replace_passages

    return replace_passages(config, _passages(options, config), options.missing == "ok")


def _delete(options: argparse.Namespace, config: DistillConfig) -> ChangeReport:
    from raydistill.index.change_job import delete_passages, read_ids

    ids = [*options.id, *(read_ids(_located(options.ids)) if options.ids else [])]
    return delete_passages(config, ids, options.missing == "ok")


def _compact(options: argparse.Namespace, config: DistillConfig) -> ChangeReport:
    from raydistill.index.change_job import compact_index, pinned_versions

    report = compact_index(config)
    if report.changed:
        pinned = {number: count for number, count in pinned_versions(report.version).items() if count}
        if pinned:
            named = ", ".join(f"version {number} ({count})" for number, count in sorted(pinned.items()))
            Console(soft_wrap=True).print(
                f"Passage numbers have changed. Candidates that were mined hold those of {named}, and stay valid while "
                "these versions are kept; mine again for the new one.",
                highlight=False,
                markup=False,
            )
    return report
