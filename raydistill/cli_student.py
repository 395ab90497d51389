"""The command that takes a finished student out of its run root; thin, like `cli`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_student_command(commands: Any) -> None:
    """Add export-student to an argparse sub-parsers object."""
    parser = commands.add_parser("export-student", help="write a student as a Hugging Face folder, to load or give away")
    address = "its address, ROOT/artifacts/student/NAME-ID, as a run prints it; or a document encoder's"
    parser.add_argument("student", metavar="STUDENT", help=address)
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a new or empty folder")
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from raydistill.errors import ConfigError
    from raydistill.progress import output_console
    from raydistill.run_report import tested_card
    from raydistill.storage.folders import fetch_folder
    from raydistill.storage.local import output_folder
    from raydistill.storage.students import student_artifact

    address = options.student if "://" in options.student else str(Path(options.student).expanduser().resolve())
    student = student_artifact(address)
    if student is None:
        raise ConfigError(
            f"{options.student!r} is no address of a student or document encoder; give ROOT/artifacts/student/NAME-ID, as a "
            "run prints it"
        )
    folder = output_folder(options.to, "--to")
    if any(folder.iterdir()):
        raise ConfigError(f"--to is {options.to!r}, and that folder holds files; name a new one")
    fetch_folder(student, folder)
    card = tested_card(student)
    if card is not None:
        readme = folder / "README.md"
        # How to load it stands in the card that was written with the weights.
        _, heading, use = readme.read_text(encoding="utf-8").rpartition("\n## Use\n")
        readme.write_text(card.rstrip() + "\n" + heading + use, encoding="utf-8")
    console = output_console()
    console.print(f"{student.kind.replace('-', ' ')}  {folder}", soft_wrap=True, highlight=False)
    if student.kind == "student":
        measured = "what the run measured on its test turns" if card else "what validation measured; no test turns yet"
        console.print(f"card     {folder}/README.md, with {measured}", soft_wrap=True, highlight=False)
    return 0
