# SPDX-License-Identifier: Apache-2.0
"""Windows: each token once per pass, orders and repeats from seed and number alone, periods that grow."""

from dataclasses import replace

import numpy as np
import pytest

from longmem.errors import DocumentError
from longmem.pretraining.config import PretrainingConfig
from longmem.pretraining.windows import FIRST_PERIOD, Windows, repeated

CONFIG = PretrainingConfig(
    window_tokens=8, batch_tokens=32, micro_rows=2, learning_rate=1e-3, steps=100, repeat_share=0.0
)
TOKENS = np.arange(8 * 13 + 5, dtype=np.uint16)
"""Tokens of 13 windows and a remainder; all tokens differ."""


def test_a_pass_covers_each_token_once() -> None:
    windows = Windows(TOKENS, CONFIG)
    assert len(windows) == 13
    for number_of_pass in range(3):
        read = [windows[number_of_pass * 13 + place] for place in range(13)]
        targets = sorted(token for window in read for token in window[1:].tolist())
        assert targets == list(range(1, 8 * 13 + 1))
        assert all(np.diff(window).tolist() == [1] * 8 for window in read)


def test_the_last_target_may_be_the_last_token() -> None:
    assert len(Windows(TOKENS[: 8 * 2 + 1], CONFIG)) == 2
    assert len(Windows(TOKENS[: 8 * 2], CONFIG)) == 1


def test_orders_differ_between_passes_and_seeds_and_nothing_else() -> None:
    def order(seed: int, numbers: range) -> list[int]:
        windows = Windows(TOKENS, replace(CONFIG, seed=seed))
        return [windows.index_of(number) for number in numbers]

    assert order(0, range(26)) == order(0, range(26))
    assert order(0, range(13)) != order(0, range(13, 26))
    assert order(0, range(13)) != order(1, range(13))
    backwards = order(0, range(25, -1, -1))
    assert backwards[::-1] == order(0, range(26)), "a window does not depend on those that were read before it"


def test_repeated_windows_really_repeat() -> None:
    config = replace(CONFIG, repeat_share=0.5, window_tokens=32, batch_tokens=128)
    tokens = np.arange(32 * 50 + 1, dtype=np.uint16)
    windows = Windows(tokens, config)
    num_repeated = 0
    for number in range(200):
        period, window = windows.period_of(number), windows[number]
        plain = windows.plain(windows.index_of(number))
        assert window.dtype == np.int64
        assert len(window) == 33
        if period is None:
            assert window.tolist() == plain.tolist()
            continue
        num_repeated += 1
        assert window[:period].tolist() == plain[:period].tolist()
        assert window[period:].tolist() == window[:-period].tolist()
    # five standard deviations of a fair coin
    assert abs(num_repeated - 100) < 5 * np.sqrt(200 / 4)


def test_repeats_are_the_same_in_another_run() -> None:
    config = replace(CONFIG, repeat_share=0.5)
    periods = [Windows(TOKENS, config).period_of(number) for number in range(50)]
    windows = Windows(TOKENS, config)
    assert [windows.period_of(number) for number in range(50)] == periods
    assert [Windows(TOKENS, replace(config, seed=1)).period_of(number) for number in range(50)] != periods


def test_periods_are_short_at_first_and_reach_half_a_window_at_half_time() -> None:
    config = replace(CONFIG, repeat_share=1.0, window_tokens=512, batch_tokens=512, steps=4000)
    windows = Windows(np.zeros(513, dtype=np.uint16), config)

    def longest(numbers: range) -> int:
        return max(period for number in numbers if (period := windows.period_of(number)) is not None)

    assert longest(range(20)) <= FIRST_PERIOD + 1
    quarters = [longest(range(start, start + 200)) for start in range(0, 2000, 500)]
    assert quarters == sorted(quarters)
    assert longest(range(2000, 4000)) == 256


def test_repeating_keeps_the_length() -> None:
    assert repeated(np.arange(7), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_too_little_data_for_one_window_is_refused() -> None:
    with pytest.raises(DocumentError, match="the validation data have 8 tokens, expected at least 9"):
        Windows(TOKENS[:8], CONFIG, "validation")
