"""The mean of several models: of every parameter, of models of one shape only."""

from __future__ import annotations

import copy

import pytest
import torch

from raydistill.config import StudentConfig
from raydistill.encoders.averaging import mean_model
from raydistill.encoders.splade import SpladeModel
from raydistill.errors import ConfigError


def moved(model: SpladeModel, seed: int) -> SpladeModel:
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return other


@pytest.fixture
def model(minilm: str) -> SpladeModel:
    made = SpladeModel.from_config(StudentConfig(model=minilm, head="identity"))
    assert made.vocabulary_head is not None
    with torch.no_grad():
        made.vocabulary_head.scale.fill_(2.0)
    return made


def test_every_parameter_is_the_mean_and_the_order_is_no_matter(model: SpladeModel) -> None:
    models = [moved(model, seed) for seed in range(3)]
    expected = {
        name: torch.stack([dict(each.named_parameters())[name].double() for each in models]).mean(0)
        for name, _ in model.named_parameters()
    }
    for order in ((0, 1, 2), (2, 0, 1)):
        mean = mean_model(copy.deepcopy(models[number]) for number in order)
        assert not mean.training
        found = dict(mean.named_parameters())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-7)


def test_the_mean_of_a_model_and_itself_is_the_model_to_the_last_bit(model: SpladeModel) -> None:
    mean = mean_model([copy.deepcopy(model), copy.deepcopy(model)])
    for (name, value), (_, before) in zip(mean.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(value, before), name


def test_models_of_other_shapes_and_none_at_all_are_refused(model: SpladeModel) -> None:
    other = copy.deepcopy(model)
    assert other.vocabulary_head is not None
    other.vocabulary_head.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match="model 2 has other parameters than the first"):
        mean_model([model, other])
    with pytest.raises(ConfigError, match="no model to take the mean of"):
        mean_model([])
