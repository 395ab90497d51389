"""The commands that look after a run root: their arguments and tables. What they do is in storage and index."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from raydistill.progress import output_console

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_upkeep_commands(commands: _Commands) -> None:
    """Add verify, gc, versions and rollback to the command line."""
    verify = commands.add_parser(
        "verify", help="check every object that a manifest names; exit status 1 when one is damaged"
    )
    _add_root(verify)
    verify.add_argument("--index", metavar="NAME", help="only this index (and the artifacts, with --artifacts)")
    verify.add_argument("--artifacts", action="store_true", help="only the artifacts (and the index, with --index)")
    depth = verify.add_mutually_exclusive_group()
    depth.add_argument("--deep", action="store_true", help="read and hash every object (the default)")
    depth.add_argument("--quick", action="store_true", help="existence and size only; reads manifests, no objects")
    verify.set_defaults(command=_verify)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=_root, help="run root: s3://bucket/prefix, file:///path or a path")


def _root(text: str) -> str:
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _verify(options: argparse.Namespace) -> int:
    from raydistill.storage.verify import ARTIFACTS, EVERYTHING, index_prefix, verify

    index = (index_prefix(options.index),) if options.index else ()
    chosen = (*index, *(ARTIFACTS if options.artifacts else ()))
    found = verify(options.root, chosen or EVERYTHING, quick=options.quick)
    console = output_console()
    if found.damages:
        table = Table("object", "problem", "what to do", show_lines=True)
        for damage in found.damages:
            table.add_row(*map(escape, (damage.key, damage.problem, damage.remedy)))
        console.print(table)
    checked = "existence and size" if options.quick else f"{found.size:,} bytes read"
    console.print(f"{found.objects:,} objects checked ({checked}), {len(found.damages):,} damaged", highlight=False)
    return 1 if found.damages else 0
