"""Known releases of data sets and their counts, so that a wrong, an old or a cut file is told by a sentence.

Counts are of queries and of the conversations (or topics) that hold them; `judged` of queries with judgements, where a
release comes with its own. Sources: the papers and pages of the data sets; those of CAsT and iKAT were counted in the files.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydistill.errors import DataError

_NEAR = 0.1


@dataclass(frozen=True, slots=True)
class Release:
    """What a file of a release holds; None is not known. With `judged_in_parts` its qrels are several files, so that fewer
    turns may be judged."""

    reader: str
    conversations: int | None
    turns: int
    judged: int | None = None
    remark: str = ""
    judged_in_parts: bool = False

    @property
    def counts(self) -> str:
        """The counts in words."""
        conversations = "" if self.conversations is None else f" in {self.conversations:,} conversations"
        return f"{self.turns:,} turns{conversations}" + ("" if self.judged is None else f", {self.judged:,} judged")

    def fits(self, conversations: int, turns: int, judged: int) -> bool:
        """Return whether a file has these counts; no judgements at all are no difference."""
        return (
            turns == self.turns
            and self.conversations in (None, conversations)
            and (judged == 0 or self.judged in (None, judged) or (self.judged_in_parts and judged < self.judged))
        )


_OLDER = "an older release: papers report on the current one ({})"

RELEASES: dict[str, Release] = {
    "topiocqa-train": Release("topiocqa", 3509, 45_450),
    "topiocqa-dev": Release("topiocqa", 205, 2514),
    "topiocqa-train-older": Release("topiocqa", None, 45_650, remark=_OLDER.format("45,450 turns")),
    "topiocqa-dev-older": Release("topiocqa", None, 2525, remark=_OLDER.format("2,514 turns")),
    "qrecc-train": Release("qrecc", 10_823, 63_501),
    "qrecc-test": Release("qrecc", 2775, 16_451, 8209),
    "cast-2019": Release("cast", 50, 479, 173),
    "cast-2020": Release("cast", 25, 216, 208),
    "cast-2021": Release("cast", 26, 239, 158),
    "cast-2022": Release("cast", 18, 205),
    "ikat-2023": Release("ikat", 25, 332),
    "ikat-2024": Release("ikat", 17, 218),
    "ikat-2025": Release("ikat", 17, 188),
    "mtrag-tasks": Release("mtrag-tasks", 110, 842, 777, judged_in_parts=True),
    "mtrag-un-tasks": Release("mtrag-tasks", 666, 666, 468, judged_in_parts=True),
}


def release_note(reader: str, conversations: int, turns: int, judged: int) -> str | None:
    """Return a sentence when a file is an older release, or nearly but not quite a known one; None for anything else.

    Args:
        conversations, turns, judged: what the file holds; judged 0 when it has no judgements.
    """
    found = (conversations, turns, judged)
    candidates = {name: release for name, release in RELEASES.items() if release.reader == reader}
    for name, release in candidates.items():
        if release.fits(*found):
            return f"is {name}: {release.remark}" if release.remark else None
    near = {name: abs(release.turns - turns) for name, release in candidates.items() if _is_near(release, *found)}
    if not near:
        return None
    name = min(near, key=near.__getitem__)
    return (
        f"holds {_counted(*found)}, nearly {name} ({candidates[name].counts}); check that it is whole and the right release"
    )


def require_release(name: str, uri: str, conversations: int, turns: int, judged: int) -> None:
    """Raise DataError when the counts are not those of a release."""
    release = RELEASES[name]
    if not release.fits(conversations, turns, judged):
        raise DataError(
            f"{uri}: holds {_counted(conversations, turns, judged)}, but {name} has {release.counts}; "
            "take the file of that release, or leave `release` out"
        )


def _is_near(release: Release, conversations: int, turns: int, judged: int) -> bool:
    expected = conversations if release.conversations is None else release.conversations
    return abs(release.turns - turns) <= _NEAR * release.turns and abs(expected - conversations) <= _NEAR * expected


def _counted(conversations: int, turns: int, judged: int) -> str:
    return f"{turns:,} turns in {conversations:,} conversations" + (f", {judged:,} judged" if judged else "")
