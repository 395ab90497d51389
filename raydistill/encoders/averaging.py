"""The mean of several models' parameters: a uniform model soup.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
time" (arXiv 2203.05482). A mean is a model only where all were trained, not for too long, from the same parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from raydistill.encoders.splade import SpladeModel
from raydistill.errors import ConfigError


def mean_model(models: Iterable[SpladeModel]) -> SpladeModel:
    """Return the first of some models with the mean of all their parameters, summed in float64, in evaluation mode.

    One model after the other is drawn and let go: in memory are the first, the sums and one more. What is no floating-point
    number, such as the mask of terms that are never active, stays the first one's.

    Raises ConfigError when there is no model, or they have not the same parameters by name and shape.
    """
    first: SpladeModel | None = None
    sums: dict[str, Tensor] = {}
    number = 0
    for number, model in enumerate(models, start=1):
        state = model.state_dict()
        if first is None:
            first, sums = model, {name: value.double() for name, value in state.items() if value.is_floating_point()}
            shapes = _shapes(state)
            continue
        if _shapes(state) != shapes:
            raise ConfigError(f"model {number} has other parameters than the first; a mean needs models of one shape")
        for name, total in sums.items():
            total += state[name]
    if first is None:
        raise ConfigError("there is no model to take the mean of")
    state = first.state_dict()
    first.load_state_dict({**state, **{name: (total / number).to(state[name].dtype) for name, total in sums.items()}})
    return first.eval()


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}
