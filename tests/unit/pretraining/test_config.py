# SPDX-License-Identifier: Apache-2.0
"""Settings of pretraining: refused values, number of steps for a corpus, and the learning-rate schedule."""

import math
from dataclasses import replace
from typing import Any

import pytest

from longmem.errors import ConfigError
from longmem.pretraining.config import PretrainingConfig

CONFIG = PretrainingConfig(window_tokens=8, batch_tokens=32, micro_rows=2, learning_rate=1e-3, steps=100)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window_tokens", 1),
        ("batch_tokens", 0),
        ("batch_tokens", 33),
        ("micro_rows", 0),
        ("steps", 0),
        ("warmup_steps", -1),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("clip_norm", math.inf),
        ("passes", -1.0),
        ("weight_decay", -0.1),
        ("cooldown_share", 1.1),
        ("repeat_share", -0.1),
    ],
)
def test_a_value_that_cannot_work_is_named(name: str, value: Any, as_users_run: None) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be .* got {value}"):
        replace(CONFIG, **{name: value})


def test_steps_follow_from_passes_unless_they_are_given() -> None:
    assert CONFIG.with_steps(1_000_000) is CONFIG
    assert replace(CONFIG, steps=None).with_steps(41).num_steps == 10, "only whole steps of one pass"
    assert replace(CONFIG, steps=None, passes=2.5).with_steps(40).num_steps == 25
    assert replace(CONFIG, steps=None).with_steps(1).num_steps == 1


def test_rate_rises_stays_and_falls_to_zero() -> None:
    config = replace(CONFIG, warmup_steps=10, cooldown_share=0.2)
    rates = [config.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([step / 21 for step in range(20, 0, -1)])
    assert config.rate(100) == 0


def test_rate_without_warmup_or_cooldown_is_constant() -> None:
    config = replace(CONFIG, warmup_steps=0, cooldown_share=0.0)
    assert {config.rate(step) for step in range(100)} == {1.0}
