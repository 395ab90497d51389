"""Progress of long work on the driver: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("raydistill")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 10.0, 300.0


class Advance(Protocol):
    """Called as work gets done: by how many units, and optionally a short note shown beside the bar."""

    def __call__(self, units: float = 1, note: str = "") -> None: ...


def output_console() -> Console:
    """Return the console for results on standard output; a log file has no width, and 80 columns fold names of systems."""
    return Console() if sys.stdout.isatty() else Console(width=120)


class _Terminal:
    """The bars of this process on a terminal, which can be live only together; stages in several threads add theirs."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bars: Progress | None = None
        self._open = 0

    def add(self, stage: str, total: float, unit: str) -> tuple[Progress, TaskID]:
        with self._lock:
            if self._bars is None:
                columns = (
                    TextColumn("[bold]{task.description:<9}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]} {task.fields[note]}"),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                )
                self._bars = Progress(*columns, console=Console(stderr=True))
                self._bars.start()
                # A thread that an interrupt leaves behind would leave the terminal without a cursor.
                atexit.register(self._bars.stop)
            self._open += 1
            return self._bars, self._bars.add_task(stage, total=total, unit=unit, note="")

    def leave(self) -> None:
        """End one bar's work; the last one leaves all of them standing as they are."""
        with self._lock:
            self._open -= 1
            if not self._open and self._bars is not None:
                self._bars.stop()
                atexit.unregister(self._bars.stop)
                self._bars = None


_TERMINAL = _Terminal()


@contextmanager
def track(stage: str, total: float, unit: str) -> Iterator[Advance]:
    """Show progress of `total` units of a stage; yields the function that advances it. Stages in several threads may."""
    if sys.stderr.isatty():
        bars, task = _TERMINAL.add(stage, total, unit)

        def advance_bar(units: float = 1, note: str = "") -> None:
            bars.update(task, advance=units)
            if note:
                bars.update(task, note=note)

        try:
            yield advance_bar
        finally:
            _TERMINAL.leave()
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
