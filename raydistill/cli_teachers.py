"""The commands that look at teachers: what each is worth, and which of their rewrites to prefer; thin, like `cli`."""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.cli_writer import writing_to
from raydistill.config_loading import load_config

if TYPE_CHECKING:
    from raydistill.pipeline import Chain


def add_teacher_commands(commands: Any) -> None:
    """Add ablate and preferences to an argparse sub-parsers object."""
    ablate = commands.add_parser("ablate", help="measure every teacher, every combination of them, and all but one")
    preferences = commands.add_parser(
        "preferences", help="write pairs (chosen, rejected) of rewrites by what they retrieve, to train a rewriter with"
    )
    for parser in (ablate, preferences):
        parser.add_argument("--config", required=True, help="YAML file; see jobs/configs")
        parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the configuration")
    ablate.add_argument(
        "--set", dest="turns", choices=["test", "train"], default="test", help="turns to measure on (default: test)"
    )
    ablate.set_defaults(command=_ablate)
    preferences.add_argument("--to", required=True, metavar="FILE", help="the file to write, .jsonl or .parquet")
    preferences.add_argument(
        "--set", dest="turns", choices=["train", "test"], default="train", help="turns to take (default: train)"
    )
    preferences.add_argument(
        "--pairs", choices=["extremes", "best", "all"], default="extremes", help="best and worst; best and each; every two"
    )
    preferences.add_argument("--least", type=float, default=0.1, help="difference of rewards of a pair (default: 0.1)")
    preferences.add_argument("--prompt", default="zero-shot-v1", help="the prompt of the rows (default: zero-shot-v1)")
    preferences.set_defaults(command=_preferences)


@contextlib.contextmanager
def _scoring(options: argparse.Namespace, purpose: str) -> Iterator[Chain]:
    """Check what the chain needs up to scoring, hold its root and join Ray."""
    from raydistill.actor_pool import connect
    from raydistill.pipeline import Chain

    config = load_config(options.config, options.overrides)
    chain = Chain(config)
    chain.check("score")
    with writing_to(config.root, config.single_writer, purpose):
        connect(config.ray)
        chain.check_resources("score")
        yield chain


def _ablate(options: argparse.Namespace) -> int:
    from raydistill.evaluation.ablation import EXPLAINED, ablation
    from raydistill.evaluation.comparison import comparison_json, comparison_page, console_table
    from raydistill.progress import output_console
    from raydistill.storage.store import open_store

    with _scoring(options, "raydistill ablate") as chain:
        candidates, index = chain.mined(options.turns), chain.index()
        config = chain.config
        found = ablation(candidates, index, chain.inputs.taught()[options.turns].qrels, config.evaluate)
        origin = {"run": config.run, "fingerprint": chain.fingerprint, "turns": options.turns}
        origin |= {"candidates": candidates.uri, "top_k": config.score.top_k}
        store, name = open_store(config.root), f"{chain.prefix}/ablation-{options.turns}"
        store.replace(f"{name}.json", comparison_json(found, origin))
        store.replace(f"{name}.html", comparison_page(found, f"Teachers of {config.run}, {options.turns} turns", EXPLAINED))
        if options.turns == "test" and chain.is_finished("evaluate"):
            chain.evaluate()  # is done: its report is written anew, with what was found here
    console = output_console()
    console.print(console_table(found, f"{found.queries} judged turns, against the best teacher"))
    console.print(f"report   {store.root}/{name}.html", soft_wrap=True, highlight=False)
    return 0


def _preferences(options: argparse.Namespace) -> int:
    from raydistill.evaluation.preferences import (
        Preference,
        check_path,
        judged_turns,
        preference_pairs,
        write_preferences,
    )
    from raydistill.progress import output_console
    from raydistill.teachers.prompts import find_template

    path = Path(options.to).expanduser()
    check_path(path)
    template = find_template(options.prompt)
    with _scoring(options, "raydistill preferences") as chain:
        candidates, rewrites = chain.mined(options.turns), chain.teach()[options.turns]
        seen: Counter[str] = Counter()

        def pairs() -> Iterator[Preference]:
            for turn in judged_turns(candidates, rewrites):
                found = preference_pairs(turn, template, options.least, options.pairs)
                seen.update(turns=1, judged=turn.reward == "ndcg", pairs=len(found), with_pairs=bool(found))
                yield from found

        write_preferences(path, pairs())
    output_console().print(
        f"{seen['pairs']} pairs of {seen['with_pairs']} turns in {path}; {seen['judged']} of {seen['turns']} turns have "
        "gold passages, the others go by the margin of their scores",
        soft_wrap=True,
        highlight=False,
    )
    return 0
