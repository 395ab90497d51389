"""Preference pairs from retrieval feedback: for every turn the rewrite that retrieves best, and one that does worse.

They train a rewriter elsewhere (direct preference optimisation, Rafailov et al., arXiv 2305.18290; with a retriever's
preferences: RetPO, Yoon et al., arXiv 2402.11827). Rows have the columns that trainers of such pairs read:

    prompt, chosen, rejected            string; the prompt as plain text, without a chat template
    query_id                            string
    chosen_teacher, rejected_teacher    string
    chosen_reward, rejected_reward      float; of `feedback.rewards`
    reward                              "ndcg" where gold passages are known, else "margin"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydistill.errors import ConfigError
from raydistill.index.candidates import candidate_scores
from raydistill.storage.artifacts import Artifact
from raydistill.teachers.feedback import rewards
from raydistill.teachers.prompts import PromptTemplate, render_prompt
from raydistill.teachers.rewriting import rewrite_texts

Pairs = Literal["extremes", "best", "all"]
_ROWS_AT_A_TIME = 4096
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("query_id", "prompt", "chosen", "rejected")),
        *((name, pa.string()) for name in ("chosen_teacher", "rejected_teacher")),
        *((name, pa.float64()) for name in ("chosen_reward", "rejected_reward")),
        ("reward", pa.string()),
    ]
)


@dataclass(frozen=True)
class JudgedTurn:
    """A turn with every teacher's rewrite and what it is worth.

    Attributes:
        history: (question, answer) pairs, oldest first.
        rewrites: teacher -> text; those that failed are left out.
        rewards: teacher -> reward; of those that have one.
        reward: what the rewards are.
    """

    query_id: str
    question: str
    history: tuple[tuple[str, str], ...]
    rewrites: Mapping[str, str]
    rewards: Mapping[str, float]
    reward: Literal["ndcg", "margin"]


@dataclass(frozen=True)
class Preference:
    """One pair; see the module for the columns."""

    query_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_teacher: str
    rejected_teacher: str
    chosen_reward: float
    rejected_reward: float
    reward: str


def judged_turns(candidates: Artifact, rewrites: Mapping[str, Artifact]) -> Iterator[JudgedTurn]:
    """Yield every mined turn with the teachers' rewrites that did not fail. In memory: all of those, and one part of turns.

    Args:
        candidates: what mining made of the turns.
        rewrites: teacher -> the artifact that it was made from.
    """
    teachers = list(candidates.manifest().metadata["teachers"])
    texts = {name: rewrite_texts(rewrites[name]) for name in teachers}
    for part in candidates.manifest().parts:
        table = pq.read_table(candidates.fetch(part))
        for row in range(len(table)):
            query_id = table.column("query_id")[row].as_py()
            passages, scores = candidate_scores(table, row)
            worth, kind = turn_rewards(teachers, scores, np.isin(passages, table.column("gold")[row].as_py()))
            history = tuple((turn["question"], turn["answer"]) for turn in table.column("history")[row].as_py())
            own = {name: texts[name][query_id] for name in teachers if query_id in texts[name]}
            yield JudgedTurn(query_id, table.column("question")[row].as_py(), history, own, worth, kind)


def turn_rewards(
    teachers: Sequence[str], scores: NDArray[Any], relevant: NDArray[np.bool_]
) -> tuple[dict[str, float], Literal["ndcg", "margin"]]:
    """Return the reward of every teacher that has scores [T, C], and which reward that is."""
    found = rewards(scores, relevant)
    kind: Literal["ndcg", "margin"] = "ndcg" if relevant.any() else "margin"
    return {name: float(value) for name, value in zip(teachers, found, strict=True) if not np.isnan(value)}, kind


def preference_pairs(
    turn: JudgedTurn, template: PromptTemplate, least: float, which: Pairs = "extremes"
) -> list[Preference]:
    """Return a turn's pairs: of different texts whose rewards differ by more than `least`, best first.

    Args:
        which: extremes, the best against the worst; best, the best against each that is worse; all, every pair.
    """
    known = [name for name in turn.rewards if name in turn.rewrites]
    ranked = sorted(known, key=lambda name: (-turn.rewards[name], name))
    plain = {name: " ".join(turn.rewrites[name].split()).casefold() for name in known}
    # By text: several teachers may have written the same, and a pair of texts counts once.
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for place, better in enumerate(ranked if which == "all" else ranked[:1]):
        for worse in ranked[place + 1 :]:
            if turn.rewards[better] - turn.rewards[worse] > least and plain[better] != plain[worse]:
                found.setdefault((plain[better], plain[worse]), (better, worse))
    pairs = list(found.values())[-1:] if which == "extremes" else list(found.values())
    if not pairs:
        return []
    # A trainer applies the model's own chat template and length limit.
    prompt = render_prompt(template, turn.question, turn.history, 2**31, len)
    return [
        Preference(
            query_id=turn.query_id,
            prompt=prompt,
            chosen=turn.rewrites[better],
            rejected=turn.rewrites[worse],
            chosen_teacher=better,
            rejected_teacher=worse,
            chosen_reward=turn.rewards[better],
            rejected_reward=turn.rewards[worse],
            reward=turn.reward,
        )
        for better, worse in pairs
    ]


def check_path(path: Path) -> None:
    """Raise ConfigError when pairs could not be written to a file, before anything is computed."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--to is {path}; its name must end in .jsonl or .parquet")
    if not path.parent.is_dir():
        raise ConfigError(f"--to is {path}, and the folder {path.parent} does not exist; make it, or write elsewhere")


def write_preferences(path: Path, pairs: Iterable[Preference]) -> None:
    """Write pairs as JSON lines or, by the suffix, as Parquet. Raises ConfigError as `check_path`."""
    check_path(path)
    rows = (asdict(pair) for pair in pairs)
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    with pq.ParquetWriter(path, SCHEMA) as writer:
        while some := list(islice(rows, _ROWS_AT_A_TIME)):
            writer.write_table(pa.Table.from_pylist(some, schema=SCHEMA))
