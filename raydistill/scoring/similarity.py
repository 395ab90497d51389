"""A dense encoder as a judge."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.config import BiEncoderConfig
from raydistill.encoders.dense import DenseEncoder
from raydistill.scoring.judges import Candidates, Tally

_CACHE_BYTES = 256 << 20


class SimilarityJudge:
    """Scores by the cosine of a query's and a passage's vector.

    Turns of one collection share many candidates, so the vectors of the passages that came last are kept, 256 MiB of them
    and their texts beside: 174,000 of width 384, 65,000 of width 1,024.
    """

    def __init__(self, config: BiEncoderConfig, scale: float, field: str) -> None:
        """Load the model. Raises ConfigError as `DenseEncoder`.

        Args:
            config: the encoder.
            scale: what cosines are multiplied with.
            field: the configuration section, for messages.
        """
        torch.set_num_threads(max(1, int(config.workers.cpus)))
        device = torch.device("cuda" if config.workers.gpus else "cpu")
        self._encoder = DenseEncoder(config, field, device, getattr(torch, config.dtype))
        self._config, self._scale = config, scale
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._kept_bytes = 0

    def judge(self, turns: Sequence[Candidates], tally: Tally) -> list[NDArray[np.float64]]:
        """See `Judge`; the scores are cosines times the scale."""
        wanted = list(dict.fromkeys(passage for turn in turns for passage in turn.passages))
        passages = dict(zip(wanted, self._passages(wanted, tally), strict=True))
        queries = self._encoded(self._config.query_prefix, [turn.query for turn in turns])
        return [
            self._scale * (np.stack([passages[text] for text in turn.passages]) @ query).astype(np.float64)
            if turn.passages
            else np.zeros(0)
            for turn, query in zip(turns, queries, strict=True)
        ]

    def _passages(self, texts: list[str], tally: Tally) -> list[NDArray[np.float32]]:
        known = {text: self._kept[text] for text in texts if text in self._kept}
        fresh = [text for text in texts if text not in known]
        tally.prompts += len(texts)
        tally.cached += len(known)
        found = dict(zip(fresh, self._encoded(self._config.passage_prefix, fresh), strict=True))
        for text in texts:
            self._keep(text, known.get(text, found.get(text)))
        return [known[text] if text in known else found[text] for text in texts]

    def _encoded(self, prefix: str, texts: list[str]) -> NDArray[np.float32]:
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        return self._encoder.vectors([prefix + text for text in texts]).cpu().numpy()

    def _keep(self, text: str, vector: NDArray[np.float32] | None) -> None:
        assert vector is not None
        if text in self._kept:
            self._kept.move_to_end(text)
            return
        self._kept[text] = vector.copy()  # a row of a matrix would keep the whole matrix
        self._kept_bytes += vector.nbytes
        while self._kept_bytes > _CACHE_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
