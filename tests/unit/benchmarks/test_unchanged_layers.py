# SPDX-License-Identifier: Apache-2.0
"""Benchmark of layers that change nothing: both jobs give the same numbers, and the model is left as it was."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.speed.unchanged_layers import FLOAT32, FLOOR, LEFT_OUT, RUN, unchanged_layers
from longmem.errors import ConfigError
from longmem.model.longmem import LongMem
from longmem.sidenet.sidenet import SideNet
from tests.inputs import DEFAULT_FORM


def test_both_jobs_give_the_same_numbers(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", unsettled=False, **DEFAULT_FORM)
    sequence = model.tokenizer.sequence("a text that goes on and on, " * 6)
    table = unchanged_layers(model, sequence, repeats=2)
    assert [line.name for line in table.lines] == [LEFT_OUT, RUN, FLOOR]
    assert table.settings["largest_difference_nats"] <= 1e-5
    assert table.settings["times_as_fast"] > 0
    assert table.settings["tokens"] == len(sequence) - 1
    assert isinstance(model.sidenet, SideNet)
    assert model.sidenet.is_backbone


def test_a_job_in_float32_beside_it(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", unsettled=False, dtype="bfloat16", **DEFAULT_FORM)
    exact = small_model("llama", unsettled=False, **DEFAULT_FORM)
    table = unchanged_layers(model, model.tokenizer.sequence("a text that goes on and on, " * 6), 2, exact)
    assert [line.name for line in table.lines] == [LEFT_OUT, RUN, FLOOR, FLOAT32]
    assert table.settings["times_as_fast_as_in_float32"] > 0
    assert abs(table.settings["perplexity_against_float32"]) < 0.01


def test_layers_that_change_results_are_refused(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama", **DEFAULT_FORM)
    with pytest.raises(ConfigError, match="the layers of llama-0 change results"):
        unchanged_layers(model, torch.arange(64, dtype=torch.int32).numpy(), repeats=2)
