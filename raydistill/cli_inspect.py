"""The command that shows one turn: conversation, rewrites, terms, passages, side by side in the terminal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from raydistill.config_loading import load_config

if TYPE_CHECKING:
    from raydistill.evaluation.inspection import Found, Inspected, WeightedTerm
    from raydistill.inspector import Inspection

_COLOURS = {"question": "bold", "history": "cyan", "added": "green"}
_MARKS = {"question": " ", "history": "<", "added": "+"}
_BAR = 12


def add_inspect_command(commands: Any) -> None:
    """Add inspect to an argparse sub-parsers object."""
    parser = commands.add_parser("inspect", help="show a turn: rewrites, terms with weights, what each finds and why")
    parser.add_argument("--config", required=True, help="YAML file of the run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--query", metavar="ID", help="a turn of the run's test, validation or training set")
    what.add_argument(
        "--say", action="append", metavar="TEXT", help="utterances of user and system in turn, the question last; repeat it"
    )
    what.add_argument("--list", dest="listed", choices=["test", "validation", "train"], help="list the ids of a set's turns")
    parser.add_argument(
        "--student",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="another student: a folder or an address; repeat",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="show only these views, such as student; repeat it")
    parser.add_argument("-k", type=int, default=5, help="passages to show (default: 5)")
    parser.add_argument("--terms", type=int, default=25, help="terms to show (default: 25)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes to the configuration")
    parser.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from raydistill.errors import ConfigError
    from raydistill.inspector import Inspector, RunTurns
    from raydistill.progress import output_console

    for name, value in (("-k", options.k), ("--terms", options.terms)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    config, console = load_config(options.config, options.overrides), output_console()
    if options.listed:
        # An index is not needed for it.
        for query in RunTurns(config).queries(options.listed):
            console.print(query.query_id, soft_wrap=True, highlight=False, markup=False)
        return 0
    inspector = Inspector(config, _students(options.student))
    found = inspector.turn(options.query, options.k) if options.query else inspector.typed(options.say, options.k)
    views = _chosen(found.views, options.only)
    if options.json:
        document = {**found.to_json(), "views": [asdict(view) for view in views]}
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return 0
    console.print(_conversation(found))
    if not inspector.has_own_student:
        console.print("[yellow]the run has no student yet: teachers and baselines only[/]")
    for view in views:
        console.print(_panel(view, options.terms, bool(found.grades)))
    console.print("terms:   [bold]word[/] said in the question  [cyan]<word[/] said before  [green]+word[/] added")
    return 0


def _students(given: Sequence[str]) -> dict[str, str]:
    from raydistill.errors import ConfigError

    made: dict[str, str] = {}
    for each in given:
        name, separator, source = each.partition("=")
        if not separator or not name or not source or name in made:
            raise ConfigError(f"--student is {each!r}; write NAME=SOURCE, each name once, such as other=runs/students/b")
        made[name] = source
    return made


def _chosen(views: Sequence[Inspected], only: Sequence[str] | None) -> list[Inspected]:
    from raydistill.errors import ConfigError

    names = [view.name for view in views]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise ConfigError(
            f"--only names {unknown[0]!r}, and there is no such view of this turn; there are {', '.join(names)}"
        )
    return [view for view in views if only is None or view.name in only]


def _conversation(found: Inspection) -> RenderableType:
    lines = []
    for turn in found.query.history:
        lines.append(f"[dim]user:[/]   {escape(turn.question)}")
        if turn.answer.strip():
            lines.append(f"[dim]system: {escape(_short(turn.answer, 240))}[/]")
    lines.append(f"[dim]user:[/]   [bold]{escape(found.query.question)}[/]")
    relevant = sum(grade > 0 for grade in found.grades.values())
    judged = f", {relevant} relevant passages" if found.grades else ", not judged"
    return Panel("\n".join(lines), title=f"{escape(found.query.query_id)}{judged}", title_align="left")


def _panel(view: Inspected, terms: int, judged: bool) -> RenderableType:
    head = [escape(_short(view.text, 300))]
    if view.note:
        head.append(f"[yellow]no rewrite ({escape(view.note)}); the last utterance stands in[/]")
    rank = ""
    if judged:
        rank = (
            f", first relevant at {view.first_relevant}"
            if view.first_relevant
            else f", nothing relevant in the top {view.depth}"
        )
    title = f"{escape(view.name)}: {len(view.terms)} terms{rank}"
    shown = (
        Columns([_term(term, view.terms[0].weight) for term in view.terms[:terms]], padding=(0, 2))
        if view.terms
        else "no term"
    )
    return Panel(Group("\n".join(head), "", shown, "", _passages(view.found)), title=title, title_align="left")


def _term(term: WeightedTerm, largest: float) -> str:
    bar = "▪" * max(1, round(_BAR * term.weight / largest))
    colour = _COLOURS[term.origin]
    return f"[{colour}]{_MARKS[term.origin]}{escape(term.term)}[/] {term.weight:.2f} [dim]{bar}[/]"


def _passages(found: Sequence[Found]) -> RenderableType:
    if not found:
        return "nothing found"
    table = Table(box=None, padding=(0, 1), show_header=False)
    for name in ("rank", "grade", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage", overflow="fold")
    for one in found:
        grade = "" if one.grade is None else f"[green]relevant {one.grade}[/]" if one.grade > 0 else "[red]not relevant[/]"
        matches = " ".join(f"{escape(term)} [dim]{value:.2f}[/]" for term, value in one.matches)
        text = escape(_short(one.text or "(its text is not there)", 200))
        table.add_row(
            str(one.rank), grade, f"{one.score:.2f}", f"[bold]{escape(one.passage_id)}[/]  {matches}\n[dim]{text}[/]"
        )
    return table


def _short(text: str, length: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= length else f"{plain[: length - 1]}…"
