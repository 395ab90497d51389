"""What the workers of a training tell its driver; a module of its own, so that the actor imports neither torch nor Ray."""

from __future__ import annotations


class ProgressBoard:
    """Where rank 0 writes how far it is and workers why they cannot go on, and the driver reads it; a Ray actor."""

    def __init__(self) -> None:
        self._state: tuple[int, int, str] = (0, 0, "")
        self._failure: tuple[str, str] | None = None
        self._failed = 0
        self._warnings: list[str] = []

    def write(self, step: int, steps: int, note: str) -> None:
        """Take the step reached, the number of all steps, and a short note."""
        self._state = (step, steps, note)

    def read(self) -> tuple[int, int, str]:
        """Return what was written last."""
        return self._state

    def warn(self, sentence: str) -> None:
        """Take something that the driver should say."""
        self._warnings.append(sentence)

    def warnings(self, first: int) -> list[str]:
        """Return the warnings from a number on."""
        return self._warnings[first:]

    def fail(self, kind: str, message: str) -> None:
        """Take the type and the sentence of a worker's error that no retry can mend; the first one's stays."""
        self._failure = self._failure or (kind, message)
        self._failed += 1

    def failed(self) -> int:
        """Return how many workers called `fail`."""
        return self._failed

    def failure(self) -> tuple[str, str] | None:
        """Return what `fail` was told; None when nothing failed."""
        return self._failure
