"""The command line: thin, one sub-command a stage plus the chain and the demo. Every mistake ends in one sentence."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raydistill import __version__
from raydistill.cli_change import add_change_commands
from raydistill.cli_compare import add_compare_command
from raydistill.cli_exchange import add_exchange_commands
from raydistill.cli_inspect import add_inspect_command
from raydistill.cli_student import add_student_command
from raydistill.cli_synthesis import add_synthesize_command
from raydistill.cli_teachers import add_teacher_commands
from raydistill.cli_track import add_track_command
from raydistill.cli_upkeep import add_upkeep_commands
from raydistill.config_loading import load_config
from raydistill.errors import ConfigError, RaydistillError

STAGES = {
    "teach": "rewrite every turn with every teacher",
    "documents": "train the document encoder, where index.documents.kind is learned",
    "index": "encode the corpus into a sparse index",
    "score": "mine candidates and score them by every teacher",
    "train": "distil the student",
    "evaluate": "measure student, teachers and baselines, and write the report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 a problem that was explained, 130 interrupted."""
    options = _parsed(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("raydistill")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        return int(options.command(options))
    except RaydistillError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_escaped(error)}", highlight=False)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; submit the same command again to continue")
        return 130
    finally:
        logger.removeHandler(handler)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line, whose overrides may stand before, between and after its flags."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    # argparse takes the first group of positional words for all of them.
    if hasattr(options, "overrides") and not any(word.startswith("-") for word in left):
        options.overrides = [*options.overrides, *left]
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raydistill", description="Distil LLM query rewriting into a sparse conversational retriever, on Ray."
    )
    parser.add_argument("--version", action="version", version=f"raydistill {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chain = commands.add_parser("distill", help="run the whole chain: " + ", ".join(STAGES))
    _add_config_arguments(chain, until=list(STAGES)[-1])
    for stage, summary in STAGES.items():
        _add_config_arguments(commands.add_parser(stage, help=summary), until=stage)
    tune = commands.add_parser("tune", help="search over configurations: a study file names the base and what to try")
    _add_config_arguments(tune, until="")
    tune.set_defaults(command=_run_study)
    add_change_commands(commands)
    _add_prepare_arguments(
        commands.add_parser("prepare", help="convert a data set to Parquet shards with a manifest, once for all runs")
    )
    add_synthesize_command(commands)
    serve = commands.add_parser("serve", help="answer searches over HTTP, on Ray Serve")
    serve.add_argument("--root", required=True, help="run root that holds the index")
    serve.add_argument("--index", required=True, help="name of the index; its current version is served")
    serve.add_argument("--student", required=True, help="folder of a student, or the address of a student artifact")
    serve.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings, such as http.port=8080")
    serve.add_argument("--dry-run", action="store_true", help="check index and student, print the settings, start nothing")
    serve.set_defaults(command=_run_service)
    demo = commands.add_parser("demo", help="run the whole chain offline on a small generated world, in minutes on a laptop")
    demo.add_argument("--seed", type=int, default=7, help="another seed gives another world (default: 7)")
    demo.add_argument(
        "--folder", type=Path, default=Path("runs/demo"), help="where data and results go (default: runs/demo)"
    )
    demo.set_defaults(command=_run_demo)
    add_compare_command(commands)
    add_track_command(commands)
    add_inspect_command(commands)
    add_teacher_commands(commands)
    add_student_command(commands)
    add_exchange_commands(commands)
    add_upkeep_commands(commands)
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser, until: str) -> None:
    parser.add_argument("--config", required=True, help="YAML file; see jobs/configs")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the configuration")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, be skipped or is missing; run nothing")
    parser.set_defaults(command=_run_stages, until=until)


def _add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", help="a published data set by its usual file names, such as topiocqa or cast-2022")
    what.add_argument("--config", help="YAML file of a PrepareConfig, for any other")
    parser.add_argument("--from", dest="source", help="folder or s3:// prefix with the files of --dataset")
    parser.add_argument("--to", help="root that the prepared parts are put into")
    parser.add_argument(
        "--max-bad-rows", type=int, default=0, help="malformed rows to quarantine in each source of --dataset"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the configuration")
    parser.set_defaults(command=_run_prepare)


def _run_prepare(options: argparse.Namespace) -> int:
    from raydistill.config import PrepareConfig
    from raydistill.config_loading import build_section, read_tree
    from raydistill.errors import ConfigError
    from raydistill.preparation import prepare, published
    from raydistill.progress import output_console

    folder, place, overrides = Path.cwd(), "the command line", list(options.overrides)
    if options.config and options.source:
        raise ConfigError("--from is where the files of --dataset are; a --config names its files itself")
    if options.config:
        path = Path(options.config).expanduser().absolute()
        tree, folder, place = read_tree(path), path.parent, str(path)
        given = {"to": options.to, "max_bad_rows": options.max_bad_rows, "corpus.max_bad_rows": options.max_bad_rows}
        given |= {"corpus.max_bad_rows": None} if not tree.get("corpus") else {}
        overrides += [f"{field}={value}" for field, value in given.items() if value is not None]
    elif not options.source or not options.to:
        raise ConfigError("--dataset needs --from (where its files are) and --to (the root for what is prepared)")
    else:
        source = options.source if "://" in options.source else str(Path(options.source).expanduser().absolute())
        tree = published(options.dataset, source, options.to, options.max_bad_rows or 0)
    console = output_console()
    for part in prepare(build_section(PrepareConfig, tree, overrides, place, folder)):
        counts = ", ".join(f"{count:,} {kind}" for kind, count in part.counts.items())
        console.print(f"{part.part:<10} {counts}\n           {part.uri}", highlight=False, soft_wrap=True)
    return 0


def _run_stages(options: argparse.Namespace) -> int:
    from raydistill.pipeline import run

    run(load_config(options.config, options.overrides), until=options.until, dry_run=options.dry_run)
    return 0


def _run_study(options: argparse.Namespace) -> int:
    from raydistill.tuning.study import check_study, plan_text, run_study
    from raydistill.tuning.trials import load_study

    study = load_study(options.config, options.overrides)
    if options.dry_run:
        check_study(study)
        Console(soft_wrap=True).print("\n".join(plan_text(study)), highlight=False, markup=False)
    else:
        run_study(study)
    return 0


def _run_service(options: argparse.Namespace) -> int:
    try:
        from raydistill.serving.start import check, run, serve_config, settings_text
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the service needs Ray Serve, and the package {error.name!r} of it is missing; pip install 'raydistill[serve]'"
        ) from None

    config = serve_config(options.root, options.index, options.student, options.overrides)
    version = check(config)
    inspected = None
    if config.inspect is not None and config.inspect.run is not None:
        from raydistill.inspector import RunTurns

        shown = load_config(config.inspect.run)
        RunTurns(shown).check(version)
        # Another one, which has opened nothing: it is sent to the replicas.
        inspected = RunTurns(shown)
    if options.dry_run:
        Console(soft_wrap=True).print(settings_text(config, version), highlight=False, markup=False)
    else:
        run(config, inspected)
    return 0


def _run_demo(options: argparse.Namespace) -> int:
    from raydistill.demo.run import prepare_demo
    from raydistill.pipeline import run

    folder = options.folder.expanduser().resolve() / f"seed-{options.seed}"
    config = prepare_demo(folder / "data", str(folder / "root"), options.seed)
    run(config, until=list(STAGES)[-1])
    return 0


def _escaped(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))


if __name__ == "__main__":
    sys.exit(main())
