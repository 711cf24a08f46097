# SPDX-License-Identifier: Apache-2.0
"""Presets have the named sizes, and the small one is the backbone that ships."""

import json
from dataclasses import replace

import pytest
import torch

from longmem.backbone.new import LlamaShape, new_llama
from longmem.errors import ConfigError
from longmem.model.source import REFERENCE_MODEL
from longmem.pretraining.presets import PRESETS, preset_of


def num_parameters(shape: LlamaShape) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in new_llama(shape, 0, 0).parameters())


def test_8m_is_the_backbone_that_ships() -> None:
    shipped = json.loads((REFERENCE_MODEL / "backbone" / "config.json").read_text())
    with torch.device("meta"):
        config = new_llama(PRESETS["8m"].shape, 0, 0).config.to_dict()
    # written when a model is saved, which a test of the whole command covers
    for name in ("architectures", "dtype", "transformers_version"):
        del shipped[name]
    assert {name: config.get(name) for name in shipped} == shipped


def test_100m_has_more_than_100_million_parameters_and_layers_that_a_sidenet_can_halve() -> None:
    shape = PRESETS["100m"].shape
    assert 100e6 < num_parameters(shape) < 130e6
    assert shape.layers % 2 == 0
    assert shape.heads * shape.head_dim == shape.hidden_size


def test_a_window_must_fit_the_positions() -> None:
    preset = PRESETS["8m"]
    with pytest.raises(ConfigError, match="window_tokens must be at most the 2048 positions"):
        replace(preset, config=replace(preset.config, window_tokens=4096))


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="size must be one of 8m, 100m, got '1b'"):
        preset_of("1b")


def test_first_weights_are_a_function_of_the_seed() -> None:
    shape = LlamaShape(
        layers=1, hidden_size=8, heads=1, head_dim=8, intermediate_size=8, vocab_size=16, max_positions=8
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (new_llama(shape, 0, seed).get_input_embeddings().weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are left alone"


@pytest.mark.parametrize(("name", "value"), [("layers", 0), ("head_dim", 7), ("vocab_size", -1)])
def test_a_shape_that_cannot_work_is_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be .* got {value}"):
        replace(PRESETS["8m"].shape, **{name: value})
