# SPDX-License-Identifier: Apache-2.0
"""Regression of labels on similarities, against a ridge regression that is solved anew for every left-out segment."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from longmem.sidenet import label_regression
from longmem.sidenet.label_regression import PENALTIES, LabelRegression, taking_part

SEGMENTS = np.repeat(np.arange(6), [4, 5, 3, 6, 5, 7])
COUNT = len(SEGMENTS)


def similarities(width: int = 12) -> torch.Tensor:
    states = normalize(torch.randn(COUNT + 3, width, generator=torch.Generator().manual_seed(0)), dim=1)
    return states @ states.T


def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, COUNT)


def solved(kernel: torch.Tensor, asked: torch.Tensor, used: np.ndarray, penalty: float) -> np.ndarray:
    """Return label shares by a regression on the demonstrations `used` alone, centred at the labels of all."""
    right = torch.eye(3, dtype=torch.float64)[torch.from_numpy(labels())]
    mean = right.mean(dim=0)
    left = kernel.double()[used][:, used] + penalty * torch.eye(len(used))
    return (mean + asked.double()[used] @ torch.linalg.solve(left, right[used] - mean)).numpy()


def test_shares_are_those_of_a_ridge_regression() -> None:
    every = similarities()
    fitted = LabelRegression(every[:COUNT, :COUNT], labels(), 3, SEGMENTS)
    for asked in every[COUNT:, :COUNT]:
        found = fitted.shares(asked.numpy())
        assert np.abs(found - solved(every[:COUNT, :COUNT], asked, np.arange(COUNT), fitted.penalty)).max() < 1e-9
        assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("segment", range(6))
def test_a_left_out_segment_has_no_influence(segment: int) -> None:
    every = similarities()
    fitted = LabelRegression(every[:COUNT, :COUNT], labels(), 3, SEGMENTS)
    used = np.flatnonzero(segment != SEGMENTS)
    for asked in every[:, :COUNT]:
        found = fitted.shares(asked.numpy(), left_out=segment)
        assert np.abs(found - solved(every[:COUNT, :COUNT], asked, used, fitted.penalty)).max() < 1e-9


def test_the_penalty_is_the_one_with_the_smallest_error_on_segments_left_out() -> None:
    kernel = similarities()[:COUNT, :COUNT]
    fitted = LabelRegression(kernel, labels(), 3, SEGMENTS)
    right = np.eye(3)[labels()]
    errors = {}
    for penalty in PENALTIES:
        found = np.stack(
            [solved(kernel, kernel[row], np.flatnonzero(SEGMENTS[row] != SEGMENTS), penalty) for row in range(COUNT)]
        )
        errors[penalty] = ((found - right) ** 2).sum(axis=1).mean()
    assert fitted.errors == pytest.approx(errors)
    assert fitted.penalty == min(errors, key=errors.__getitem__)


def test_in_one_segment_single_demonstrations_are_left_out() -> None:
    kernel = similarities()[:COUNT, :COUNT]
    fitted = LabelRegression(kernel, labels(), 3, np.zeros(COUNT, dtype=np.int64))
    others = [np.flatnonzero(np.arange(COUNT) != row) for row in range(COUNT)]
    found = np.stack([solved(kernel, kernel[row], others[row], 1.0) for row in range(COUNT)])
    assert fitted.errors[1.0] == pytest.approx(((found - np.eye(3)[labels()]) ** 2).sum(axis=1).mean())
    # nothing is left to estimate from
    assert fitted.shares(kernel[0].numpy(), left_out=0) == pytest.approx(np.bincount(labels()) / COUNT)


def test_a_large_memory_takes_part_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_regression, "MOST_DEMONSTRATIONS", 4)
    assert taking_part(3).tolist() == [0, 1, 2]
    assert taking_part(10).tolist() == [0, 3, 6, 9]
