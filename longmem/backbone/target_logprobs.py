# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of targets from rows of logits.

Torch's cross entropy converts the logits of the whole vocabulary to float32 and writes as many log-probabilities, of
which one is used. For bfloat16 logits on processors with AVX-512 BF16, `longmem/native/logprobs.c` writes that one.
"""

import ctypes

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from longmem.backbone.fast.attention import is_available
from longmem.native.build import native_library
from longmem.native.params import LogprobsParams
from longmem.native.threads import run_threads


def target_logprobs(
    logits: Float[Tensor, "rows vocabulary"], targets: Int64[Tensor, " rows"]
) -> Float32[Tensor, " rows"]:
    """Return the natural-log probability of each row's target, computed in float32.

    Raises:
        IndexError: A target is not in the vocabulary.
    """
    assert targets.shape == logits.shape[:1], f"{len(targets)} targets of {len(logits)} rows"
    assert (targets.dtype, targets.device) == (torch.long, logits.device), (targets.dtype, targets.device)
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise IndexError(
            f"expected targets from 0 to {logits.shape[1] - 1}, got {int(targets.min())} to {int(targets.max())}"
        )
    if not runs_natively(logits):
        return -cross_entropy(logits.float(), targets, reduction="none")
    wanted, output = targets.contiguous(), torch.empty(len(logits))
    params = LogprobsParams(
        logits=logits.data_ptr(),
        targets=wanted.data_ptr(),
        stride=logits.stride(0),
        vocabulary=logits.shape[1],
        output=output.data_ptr(),
    )
    library = native_library()
    run_threads(lambda first, last: library.longmem_logprobs(ctypes.byref(params), first, last), len(logits))
    return output


def runs_natively(logits: Float[Tensor, "rows vocabulary"]) -> bool:
    return (
        logits.dtype == torch.bfloat16
        and logits.device.type == "cpu"
        and logits.stride(1) == 1
        and not (torch.is_grad_enabled() and logits.requires_grad)
        and is_available()
    )
