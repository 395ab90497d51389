"""The commands that look after a run root: their arguments and tables. What they do is in storage and index."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table

from raydistill.cli_writer import add_writer_argument, writing_to
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

    gc = commands.add_parser(
        "gc", help="remove what no manifest needs: old index versions, given-up work; a dry run by default"
    )
    _add_root(gc)
    gc.add_argument(
        "--keep-versions",
        type=int,
        default=2,
        metavar="N",
        help="versions of each index to keep: the N newest, the current one and its N - 1 predecessors (default: 2)",
    )
    gc.add_argument(
        "--grace",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="keep what is younger; longer than the longest search of an old version, and than a build needs for one "
        "segment (default: 24)",
    )
    gc.add_argument("--delete", action="store_true", help="remove it; without this, only say what would be removed")
    add_writer_argument(gc)
    gc.set_defaults(command=_gc, name="gc")

    versions = commands.add_parser("versions", help="list the versions of an index")
    rollback = commands.add_parser("rollback", help="let another version of an index be the one that searches use")
    for parser in (versions, rollback):
        _add_root(parser)
        parser.add_argument("index", help="name of the index")
    versions.set_defaults(command=_versions)
    rollback.add_argument("--to", type=int, required=True, metavar="VERSION", help="number of the version; see versions")
    add_writer_argument(rollback)
    rollback.set_defaults(command=_rollback, name="rollback")


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
        columns = (Column(name, overflow="fold") for name in ("object", "problem", "what to do"))
        table = Table(*columns, show_lines=True)
        for damage in found.damages:
            table.add_row(*map(escape, (damage.key, damage.problem, damage.remedy)))
        console.print(table)
    checked = "existence and size" if options.quick else f"{found.size:,} bytes read"
    console.print(f"{found.objects:,} objects checked ({checked}), {len(found.damages):,} damaged", highlight=False)
    return 1 if found.damages else 0


def _gc(options: argparse.Namespace) -> int:
    from raydistill.errors import StorageError
    from raydistill.storage.collect import Policy, collect
    from raydistill.storage.store import open_store

    if next(iter(open_store(options.root).list("")), None) is None:
        raise StorageError(f"{options.root} holds nothing at all; check the root")
    policy = Policy(options.keep_versions, options.grace * 3600)
    if options.delete:
        with writing_to(options.root, options.single_writer, f"raydistill {options.name}"):
            found = collect(options.root, policy, delete=True)
    else:
        found = collect(options.root, policy)
    console = output_console()
    table = Table("where", "what", Column("objects", justify="right"), Column("bytes", justify="right"), "")
    for (where, what), (objects, size) in sorted(found.removed.items()):
        table.add_row(escape(where), what, f"{objects:,}", f"{size:,}", "removed" if options.delete else "to remove")
    for (where, what), (objects, size) in sorted(found.young.items()):
        table.add_row(escape(where), what, f"{objects:,}", f"{size:,}", "kept: too young")
    if table.rows:
        console.print(table)
    for (index, version), artifacts in sorted(found.pinned.items()):
        console.print(
            f"version {version} of {index} is kept for {artifacts} artifacts that hold its passage numbers (delete their "
            "folders, if they are no longer needed)",
            highlight=False,
        )
    objects, size = (sum(each[place] for each in found.removed.values()) for place in (0, 1))
    done = "removed" if options.delete else "to remove; nothing was changed, --delete removes them"
    console.print(f"{objects:,} objects, {size:,} bytes {done}", highlight=False)
    return 0


def _versions(options: argparse.Namespace) -> int:
    from raydistill.index.versions import list_versions

    table = Table("version", "", *(Column(name, justify="right") for name in ("passages", "segments", "bytes")))
    table.add_column("created")
    table.add_column("fingerprint")
    for each in list_versions(options.root, options.index):
        version = each.version
        numbers = (f"{version.live:,}", f"{len(version.segments):,}", f"{each.size:,}")
        current = "current" if each.is_current else ""
        table.add_row(str(version.version), current, *numbers, each.created, version.fingerprint[:16])
    output_console().print(table)
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from raydistill.index.versions import roll_back

    with writing_to(options.root, options.single_writer, f"raydistill {options.name}"):
        before, version = roll_back(options.root, options.index, options.to)
    was = "there was none" if before is None else f"it was version {before}"
    output_console().print(
        f"version {version.version} of {options.index} is current ({version.live:,} passages); {was}", highlight=False
    )
    return 0
