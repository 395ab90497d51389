"""The command that has a language model write conversations about a run's passages; thin, like `cli`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_synthesize_command(commands: Any) -> None:
    """Add synthesize to an argparse sub-parsers object."""
    parser = commands.add_parser(
        "synthesize", help="have a language model write training conversations about a run's passages"
    )
    parser.add_argument("--config", required=True, help="YAML file of a SynthesisConfig; see jobs/configs/synthesis.yaml")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    parser.set_defaults(command=_synthesize)


def _synthesize(options: argparse.Namespace) -> int:
    from raydistill.cli_writer import writing_to
    from raydistill.config import SynthesisConfig
    from raydistill.config_loading import build_section, load_config, read_tree
    from raydistill.progress import output_console
    from raydistill.synthesis.stage import synthesize

    path = Path(options.config).expanduser().absolute()
    config = build_section(SynthesisConfig, read_tree(path), list(options.overrides), str(path), path.parent)
    run = load_config(config.run)
    with writing_to(run.root, run.single_writer, f"synthesis of {config.dataset}"):
        found = synthesize(config)
    console = output_console()
    made = f"{found.conversations:,} conversations with {found.turns:,} turns"
    console.print(f"{made}\n{found.uri}", highlight=False, soft_wrap=True)
    left = {name: count for name, count in found.counters.items() if name.startswith(("failed", "not_found")) and count}
    for name, count in sorted(left.items()):
        console.print(f"  {name:<28} {count:,.0f}", highlight=False)
    return 0
