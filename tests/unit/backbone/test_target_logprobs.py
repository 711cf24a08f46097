# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of targets, in C and by torch, against double precision."""

import math

import pytest
import torch
from torch import Tensor

from longmem.backbone.fast import attention as fast_attention
from longmem.backbone.target_logprobs import runs_natively, target_logprobs


def exact(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.double().log_softmax(dim=1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [1, 15, 16, 49_155])
@pytest.mark.parametrize("threads", [1, 3])
def test_those_of_double_precision(dtype: torch.dtype, vocabulary: int, threads: int) -> None:
    random = torch.Generator().manual_seed(vocabulary)
    whole = (torch.randn(9, vocabulary + 3, generator=random) * 8).to(dtype)
    logits = whole[:, :vocabulary]
    targets = torch.randint(0, vocabulary, (9,), generator=random)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = target_logprobs(logits, targets)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == torch.float32
    # roundings of the maximum, of the logarithm and of 16 running sums, which grow to 3,072 terms
    assert (found - exact(logits, targets)).abs().max() <= 1e-5
    assert runs_natively(logits) == (dtype == torch.bfloat16 and fast_attention.is_available())


def test_what_is_not_finite_is_not_hidden() -> None:
    logits = torch.zeros(4, 40, dtype=torch.bfloat16)
    logits[0, 7], logits[1, 7], logits[2, 7] = math.nan, math.inf, -math.inf
    found = target_logprobs(logits, torch.zeros(4, dtype=torch.long))
    assert found[:2].isnan().all()
    assert found[2:].tolist() == pytest.approx([-math.log(39), -math.log(40)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", [-100, -1, 40])
def test_a_target_outside_of_the_vocabulary_is_refused(target: int, dtype: torch.dtype) -> None:
    with pytest.raises(IndexError, match=f"expected targets from 0 to 39, got .*{target}"):
        target_logprobs(torch.zeros(2, 40, dtype=dtype), torch.tensor([0, target]))


@pytest.mark.parametrize("targets", [torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.int32)])
def test_targets_that_do_not_match_the_rows_are_a_bug(targets: torch.Tensor, as_users_run: None) -> None:
    with pytest.raises(AssertionError):
        target_logprobs(torch.zeros(2, 40, dtype=torch.bfloat16), targets)


def test_rows_that_share_their_numbers() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)).bfloat16().expand(3, 40)
    targets = torch.tensor([3, 4, 5])
    assert (target_logprobs(logits, targets) - exact(logits, targets)).abs().max() <= 1e-5


def test_no_rows() -> None:
    assert target_logprobs(torch.zeros(0, 40, dtype=torch.bfloat16), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_gradients_go_to_torch() -> None:
    logits = torch.zeros(2, 40, dtype=torch.bfloat16, requires_grad=True)
    target_logprobs(logits, torch.tensor([3, 4])).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 3]) == pytest.approx(1 - 1 / 40, rel=1e-2)
