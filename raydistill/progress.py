"""Progress of long work on the driver: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger("raydistill")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 10.0, 300.0


class Advance(Protocol):
    """Called as work gets done: by how many units, and optionally a short note shown beside the bar."""

    def __call__(self, units: float = 1, note: str = "") -> None: ...


def output_console() -> Console:
    """Return the console for results on standard output; a log file has no width, and 80 columns fold names of systems."""
    return Console() if sys.stdout.isatty() else Console(width=120)


@contextmanager
def track(stage: str, total: float, unit: str) -> Iterator[Advance]:
    """Show progress of `total` units of a stage; yields the function that advances it."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(stage, total=total, note="")

            def advance_bar(units: float = 1, note: str = "") -> None:
                bar.update(task, advance=units)
                if note:
                    bar.update(task, note=note)

            yield advance_bar
        return

    started = last_line = time.monotonic()
    done = 0.0

    def advance_log(units: float = 1, note: str = "") -> None:
        nonlocal done, last_line
        done += units
        now = time.monotonic()
        # Often while it is new, rarely when it takes hours.
        pause = min(max(_SHORTEST_SECONDS, (now - started) / 20), _LONGEST_SECONDS)
        if now - last_line >= pause or (units and done >= total):
            last_line = now
            logger.info("%s: %g of %g %s, %.0f s %s", stage, done, total, unit, now - started, note)

    yield advance_log
