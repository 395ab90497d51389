"""A cross-encoder as a judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydistill.config import CrossEncoderConfig
from raydistill.reranking.cross_encoder import CrossEncoder
from raydistill.scoring.judges import Candidates, Tally


class ReadingJudge:
    """Reads query and passage together, pair by pair; see `cross_encoder`."""

    def __init__(self, config: CrossEncoderConfig, field: str) -> None:
        """Load the model. Raises ConfigError as `CrossEncoder`."""
        import torch

        torch.set_num_threads(max(1, int(config.workers.cpus)))
        self._encoder = CrossEncoder(config, "cuda" if config.workers.gpus else "cpu", field)

    def judge(self, turns: Sequence[Candidates], tally: Tally) -> list[NDArray[np.float64]]:
        """See `Judge`."""
        tally.prompts += sum(len(turn.passages) for turn in turns)
        return [self._encoder.scores(turn.query, turn.passages).astype(np.float64) for turn in turns]
