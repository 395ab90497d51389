"""The commands that take a published index elsewhere and bring vectors in; thin, like `cli`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raydistill.cli_writer import add_writer_argument, writing_to

if TYPE_CHECKING:
    from raydistill.index.publish import IndexVersion


def add_exchange_commands(commands: Any) -> None:
    """Add the commands to an argparse sub-parsers object."""
    export = commands.add_parser("export", help="write a published index in the format of another engine")
    _add_index_arguments(export)
    export.add_argument("--to", required=True, help="a new folder or s3:// prefix")
    export.add_argument(
        "--format", required=True, help="parquet, jsonl, anserini, opensearch, qdrant, ciff (BMP reads it too) or pisa"
    )
    export.add_argument(
        "overrides", nargs="*", metavar="field=value", help="bits=8, scale=100, terms=TOKENIZER, workers.actors=8 …"
    )
    export.set_defaults(command=_export)
    load = commands.add_parser("import-vectors", help="make an index of vectors that were encoded elsewhere")
    load.add_argument("--from", dest="files", required=True, nargs="+", help="Parquet or JSON lines; a * may end a path")
    load.add_argument("--to", required=True, metavar="ROOT", help="run root: a folder or s3://bucket/prefix")
    load.add_argument("--index", required=True, help="name of the index")
    load.add_argument("overrides", nargs="*", metavar="field=value", help="terms=TOKENIZER, max_bad_rows=10, impacts=f32 …")
    add_writer_argument(load)
    load.set_defaults(command=_import)
    queries = commands.add_parser("export-queries", help="write query vectors in the form in which an engine takes them")
    source = queries.add_mutually_exclusive_group(required=True)
    source.add_argument("--candidates", metavar="URI", help="mined candidates: the rewrites of a teacher, see --teacher")
    source.add_argument("--texts", metavar="FILE", help='JSON lines {"_id", "text"}, encoded by --encoder')
    _add_index_arguments(queries)
    queries.add_argument("--teacher", help="whose rewrites (default: the only teacher's)")
    queries.add_argument("--encoder", metavar="FOLDER", help="folder of a student or of another masked language model")
    queries.add_argument("--to", required=True, metavar="FILE", help="the file to write")
    queries.add_argument("--format", choices=["jsonl", "tsv", "bmp", "opensearch", "qdrant"], default="jsonl")
    queries.add_argument("--terms", help="names of the terms, as of the export; default their ids")
    queries.add_argument("--scale", type=float, help="tsv, bmp: repetitions = weight * scale (default: largest 32)")
    queries.add_argument("--field", default="sparse", help="opensearch, qdrant: the vector field (default: sparse)")
    queries.set_defaults(command=_export_queries)
    tune = commands.add_parser("tune-search", help="find the fastest setting of approximate search that finds enough")
    _add_index_arguments(tune)
    tune.add_argument("--queries", metavar="FILE", help='JSON lines {"id", "vector"}, as export-queries writes them')
    tune.add_argument("--terms", help="names of the terms in --queries; default their ids")
    tune.add_argument("--to", metavar="FOLDER", help="write search-tuning.json and search-tuning.html there")
    tune.add_argument("overrides", nargs="*", metavar="field=value", help="recall=0.95, k=10, query_cut=[5,10] …")
    add_writer_argument(tune)
    tune.set_defaults(command=_tune_search)


def _add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="run root: a folder or s3://bucket/prefix")
    parser.add_argument("--index", required=True, help="name of the index")
    parser.add_argument("--version", type=int, help="number of the version (default: the current one)")


def _export(options: argparse.Namespace) -> int:
    from raydistill.config import ExportConfig, RayConfig
    from raydistill.config_loading import build_section
    from raydistill.index.exchange.export import export_index

    config = build_section(ExportConfig, {"format": options.format}, options.overrides, "export")
    target = _uri(options.to)
    done = export_index(_version(options), target, config, RayConfig())
    console = Console(soft_wrap=True)
    size = sum(part["size"] for part in done["parts"])
    console.print(f"{done['passages']} passages, {len(done['parts'])} files, {size / 1e6:.1f} MB in {target}/vectors")
    if done["quantisation"] is not None:
        console.print(f"impacts * {done['quantisation']['scale']:.6g}, rounded, at least 1")
    if done["overlap"] is not None:
        overlap = done["overlap"]
        console.print(
            f"top 10 by whole numbers and by stored impacts agree by {overlap['mean']:.1%} on {overlap['queries']} queries "
            f"(proven for {overlap['proven']:.0%} of them)"
        )
    return 0


def _import(options: argparse.Namespace) -> int:
    from raydistill.config import ImportConfig, RayConfig
    from raydistill.config_loading import build_section
    from raydistill.index.exchange.load import import_vectors

    fixed = {"files": [_uri(file) for file in options.files], "name": options.index}
    config = build_section(ImportConfig, fixed, options.overrides, "import-vectors")
    root = _uri(options.to)
    with writing_to(root, options.single_writer, "raydistill import-vectors"):
        version = import_vectors(config, root, RayConfig())
    refused = version.metadata["import"]["refused"]
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(refused.items())) or "none"
    console = Console(soft_wrap=True)
    console.print(f"{version.passages} passages over {version.vocabulary_size} terms in {len(version.segments)} segments")
    console.print(f"rows left out: {told}")
    console.print(f"version {version.version}: {version.uri}")
    return 0


def _export_queries(options: argparse.Namespace) -> int:
    from raydistill.errors import DataError
    from raydistill.index.exchange.queries import encoded_texts, query_lines, stored_rewrites
    from raydistill.index.exchange.terms import term_names

    size = _version(options).vocabulary_size
    if options.candidates:
        ids, vectors = stored_rewrites(_uri(options.candidates), options.teacher, size)
    elif options.encoder:
        ids, vectors = encoded_texts(_uri(options.texts), str(Path(options.encoder).expanduser().resolve()))
    else:
        raise DataError("--texts needs --encoder, the folder of the model that encodes them")
    if vectors.vocabulary_size != size:
        raise DataError(
            f"the encoder has {vectors.vocabulary_size} terms and the index {size}; take the index's own student"
        )
    names = term_names(_terms(options), size)
    path = Path(options.to).expanduser()
    with path.open("w", encoding="utf-8") as file:
        file.writelines(query_lines(ids, vectors, names, options.format, options.field, options.scale))
    Console(soft_wrap=True).print(f"{len(ids)} queries in {path}")
    return 0


def _tune_search(options: argparse.Namespace) -> int:
    from raydistill.config import RayConfig, TuneSearchConfig
    from raydistill.config_loading import build_section
    from raydistill.index.exchange.quantise import passages_as_queries
    from raydistill.index.exchange.queries import read_queries
    from raydistill.index.exchange.terms import term_names
    from raydistill.index.search import open_searcher
    from raydistill.progress import output_console
    from raydistill.storage.local import output_folder
    from raydistill.tuning.search_engine import chosen, console_table, results_json, results_page, tune_search

    config = build_section(TuneSearchConfig, {}, options.overrides, "tune-search")
    folder = output_folder(options.to, "--to") if options.to else None
    version = _version(options)
    if options.queries:
        names = None if options.terms is None else term_names(_terms(options), version.vocabulary_size)
        _, queries = read_queries(_uri(options.queries), version.vocabulary_size, names)
    else:
        queries = passages_as_queries(open_searcher(version), config.queries)
    with writing_to(version.root, options.single_writer, "raydistill tune-search"):
        measured = tune_search(version, config, queries, RayConfig())
    console = output_console()
    console.print(console_table(measured, config))
    pick = chosen(measured, config.recall)
    if folder is not None:
        (folder / "search-tuning.json").write_bytes(results_json(measured, config))
        (folder / "search-tuning.html").write_bytes(results_page(measured, config, f"Search of {version.name}"))
    if pick is None:
        console.print(
            f"no setting reaches recall {config.recall:g}; try larger n_postings, query_cut or smaller heap_factor"
        )
        return 1
    import yaml

    console.print(f"evaluate:\n  engine: {yaml.safe_dump(pick.engine, default_flow_style=True).strip()}", soft_wrap=True)
    return 0


def _version(options: argparse.Namespace) -> IndexVersion:
    from raydistill.index.publish import current_version, load_version

    root = _uri(options.root)
    if options.version is None:
        return current_version(root, options.index)
    return load_version(root, options.index, options.version)


def _terms(options: argparse.Namespace) -> str | None:
    path = None if options.terms is None else Path(options.terms).expanduser()
    return str(path.resolve()) if path is not None and path.exists() else options.terms


def _uri(location: str) -> str:
    """Return a location with relative paths made absolute."""
    return location.rstrip("/") if "://" in location else str(Path(location).expanduser().resolve())
