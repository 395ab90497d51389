"""Which candidates of a query enter a training step: a pure function of (seed, epoch, query id).

The draw does not depend on worker, world size, batch or resume point, so two runs of one configuration see the same
passages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydistill.config import SamplingConfig


@dataclass(frozen=True)
class Sample:
    """Drawn candidates of one query.

    Attributes:
        positions: int64 [k], k <= SamplingConfig.passages; positions in the query's candidate arrays, no repeats.
        gold: position in `positions` of the gold passage, -1 where the query has none among its candidates.
    """

    positions: NDArray[np.int64]
    gold: int


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """Return a random generator that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def draw(
    scores: NDArray[np.float32],
    gold_positions: NDArray[np.int64],
    policy: SamplingConfig,
    seed: int,
    epoch: int,
    query_id: str,
) -> Sample:
    """Draw one gold, the `top` best-ranked candidates and uniform ones of the rank window.

    Candidates are ranked by the teachers' combined score, best first, ties by position. Where there are fewer
    candidates than the window reaches, the window is cut to what exists, and the sample is smaller where it must be.

    Args:
        scores: float32 [C], C >= 1, finite: the teachers' combined scores.
        gold_positions: int64 [G]; candidates that are gold. One is drawn; the others are not drawn as negatives.
        policy: how many, and from where.
        seed, epoch, query_id: what the draw depends on.
    """
    random = generator(seed, epoch, query_id)
    taken: list[int] = []
    if len(gold_positions):
        taken.append(int(random.choice(gold_positions)))
    golds = {int(position) for position in gold_positions}
    ranking = [int(position) for position in np.argsort(-scores, kind="stable")]
    top = [position for position in ranking[: policy.top] if position not in golds]
    taken += top[: policy.passages - len(taken)]
    known = golds | set(top)
    window = [position for position in ranking[policy.first_rank - 1 : policy.last_rank] if position not in known]
    missing = policy.passages - len(taken)
    if len(window) < missing:
        better = [position for position in ranking[: policy.first_rank - 1] if position not in known]
        window = better[max(0, len(better) - (missing - len(window))) :] + window
    drawn: Iterable[int] = (
        random.choice(window, size=min(missing, len(window)), replace=False) if window and missing > 0 else []
    )
    positions = np.asarray([*taken, *drawn], dtype=np.int64)
    return Sample(positions, 0 if golds else -1)
