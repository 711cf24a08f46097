# SPDX-License-Identifier: Apache-2.0
"""Norms and gated activations in C against transformers' own, on processors with AVX-512 BF16."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longmem.backbone.backbone import Backbone
from longmem.backbone.families import FAMILIES
from longmem.backbone.fast import elementwise as fast_elementwise
from longmem.backbone.fast import modules
from longmem.backbone.fast.attention import is_available
from longmem.backbone.fast.elementwise import silu_product, use_fast_elementwise
from longmem.backbone.fast.modules import THREADED, derived
from longmem.backbone.small import save_small_backbone
from longmem.config import Dtype

needs_bf16 = pytest.mark.skipif(not is_available(), reason="needs a C compiler, and a processor with AVX-512 BF16")
BORDER_SHARE = 0.01
"""Largest share of numbers that lie so close to a border of rounding that they may differ. A sum or an exponential is
2^-18 off at most, and bfloat16 has borders 2^-8 apart: a share of 2^-9."""


def assert_rounded_alike(found: Tensor, expected: Tensor) -> None:
    """Assert that numbers differ by one step of bfloat16 at most, and few at all."""
    assert found.dtype == expected.dtype == torch.bfloat16
    differ = found != expected
    assert differ.sum() <= BORDER_SHARE * differ.numel()
    # the step of a product of two rounded factors: one factor may be off by one step
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-6, atol=0)


def norms(width: int) -> tuple[nn.Module, nn.Module]:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    plain = LlamaRMSNorm(width, eps=1e-5).to(torch.bfloat16)
    plain.weight.data = torch.randn(width, generator=torch.Generator().manual_seed(3)).bfloat16()
    plain.requires_grad_(False)
    fast = copy.deepcopy(plain)
    fast.__class__ = derived(fast_elementwise._FastNorm, LlamaRMSNorm)
    return plain, fast


@needs_bf16
@pytest.mark.parametrize("shape", [(1, 7, 64), (3, 5, 33), (2, 1, 576), (1, 0, 64), (1, 4, 1), (17, 100)])
def test_norms_are_those_of_transformers(shape: tuple[int, ...]) -> None:
    plain, fast = norms(shape[-1])
    rows = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert_rounded_alike(fast(rows), plain(rows))
    assert_rounded_alike(fast(rows.transpose(0, -2)), plain(rows.transpose(0, -2)))
    zeros = torch.zeros(shape).bfloat16()
    assert torch.equal(fast(zeros), plain(zeros))


@needs_bf16
@pytest.mark.parametrize("shape", [(1, 7, 64), (3, 5, 33), (1, 0, 64), (2, 1), (5,)])
def test_gated_activations_are_those_of_torch(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(5)
    gates, factors = (8 * torch.randn(shape, generator=random).bfloat16() for _ in range(2))
    assert_rounded_alike(silu_product(gates, factors), silu(gates) * factors)


@needs_bf16
def test_large_and_broken_numbers_go_through_as_in_torch() -> None:
    gates = torch.tensor([0.0, 100.0, -100.0, 3e38, -3e38, torch.inf, torch.nan, 1e-30, -1.0]).bfloat16()
    found, expected = silu_product(gates, torch.ones_like(gates)), silu(gates)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-30, equal_nan=True)
    plain, fast = norms(8)
    rows = torch.full((2, 8), 2.0).bfloat16()
    rows[1, 3] = torch.nan
    torch.testing.assert_close(fast(rows), plain(rows), rtol=0, atol=0, equal_nan=True)


@needs_bf16
@pytest.mark.parametrize("threads", [2, 3])
def test_numbers_depend_on_no_threads_and_no_other_rows(threads: int) -> None:
    _, norm = norms(96)
    random = torch.Generator().manual_seed(6)
    rows, gates = (torch.randn(1500, 96, generator=random).bfloat16() for _ in range(2))
    alone = norm(rows[7:8]), silu_product(rows[7:8], gates[7:8])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = norm(rows)[7:8], silu_product(rows, gates)[7:8]
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours, theirs)


REPLACED = {
    "llama": (3, 1),
    "mistral": (3, 1),
    "qwen2": (3, 1),
    "qwen3": (5, 1),
    "phi3": (2, 1),
    "granite": (3, 1),
    "olmo2": (1, 0),
}
"""Number of replaced modules of each layer, and behind the last. Norms of Gemma 3 and OLMo 2 round elsewhere."""


@needs_bf16
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_of_a_family_compute_what_they_did(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_backbone(tmp_path / family, family)
    with monkeypatch.context() as patched:
        patched.setattr("longmem.backbone.loading.use_fast_elementwise", lambda _model: None)
        plain = Backbone.load(tmp_path / family, dtype="bfloat16").model
    fast = copy.deepcopy(plain)
    use_fast_elementwise(fast)
    pairs = [
        (before, after)
        for before, after in zip(plain.modules(), fast.modules(), strict=True)
        if type(before) is not type(after)
    ]
    of_layer, behind = REPLACED.get(family, (0, 0))
    assert len(pairs) == of_layer * plain.config.num_hidden_layers + behind
    for before, after in pairs:
        width = len(before.weight) if hasattr(before, "weight") else plain.config.hidden_size
        rows = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(7)).bfloat16()
        with torch.no_grad():
            # a product with a matrix spreads a number that was rounded otherwise
            torch.testing.assert_close(after(rows), before(rows), rtol=2**-6, atol=2**-8)


@needs_bf16
def test_a_model_is_as_near_to_float32_as_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_backbone(tmp_path / "llama", "llama")
    tokens = torch.randint(0, 200, (1, 400), generator=torch.Generator().manual_seed(8))

    def logprobs(dtype: Dtype) -> Tensor:
        backbone = Backbone.load(tmp_path / "llama", dtype=dtype)
        if dtype == "bfloat16":
            backbone.model.set_attn_implementation("sdpa")
        return backbone.target_logprobs(backbone.forward(tokens, 1, None).hidden[0], tokens[0, 1:])

    exact, fast = logprobs("float32"), logprobs("bfloat16")
    monkeypatch.setattr("longmem.backbone.loading.use_fast_elementwise", lambda _model: None)
    plain = logprobs("bfloat16")
    assert not torch.equal(fast, plain)
    assert (fast - exact).square().mean() <= 1.2 * (plain - exact).square().mean()


def gated() -> tuple[nn.Module, nn.Module]:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    torch.manual_seed(9)
    plain = (
        LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=1))
        .to(torch.bfloat16)
        .requires_grad_(False)
    )
    fast = copy.deepcopy(plain)
    fast.__class__ = derived(fast_elementwise._FastGated, LlamaMLP)
    return plain, fast


@needs_bf16
@pytest.mark.parametrize("trained", ["gate_proj", "up_proj", "down_proj"])
def test_a_trained_part_of_a_gated_layer_gets_the_gradients_of_torch(trained: str) -> None:
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(10)).bfloat16()
    gradients = []
    for layer in gated():
        weight = getattr(layer, trained).weight.requires_grad_()
        layer(rows).float().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients, rtol=2**-6, atol=2**-8)


@needs_bf16
def test_layers_are_pickled_and_copied(tmp_path: Path) -> None:
    for _, fast in (gated(), norms(16)):
        rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(11)).bfloat16()
        for again in (pickle.loads(pickle.dumps(fast)), copy.deepcopy(fast)):
            assert type(again) is type(fast)
            assert torch.equal(again(rows), fast(rows))
            assert again.state_dict().keys() == fast.state_dict().keys()


@needs_bf16
def test_rows_of_another_width_are_an_error_as_in_torch() -> None:
    for norm in norms(16):
        with pytest.raises(RuntimeError, match="must match"):
            norm(torch.zeros(2, 32).bfloat16())


@needs_bf16
@pytest.mark.parametrize(("rows", "calls"), [(THREADED // 96, 0), (THREADED, 2)])
def test_few_numbers_start_no_threads(rows: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(modules, "run_threads", lambda work, count: seen.append(count) or work(0, count))
    numbers = torch.zeros(rows, 96).bfloat16()
    _, norm = norms(96)
    norm(numbers)
    silu_product(numbers, numbers)
    assert len(seen) == calls


@needs_bf16
def test_other_types_and_gradients_are_computed_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = norms(16)

    def refuse(*_: Any) -> None:
        raise AssertionError("computed in C")

    monkeypatch.setattr(modules, "run_threads", refuse)
    rows = torch.randn(3, 16)
    assert torch.equal(fast(rows), plain(rows))
    trained = rows.bfloat16().requires_grad_()
    fast(trained).sum().backward()
    assert trained.grad is not None
    save_small_backbone(tmp_path / "llama", "llama")
    model = Backbone.load(tmp_path / "llama", dtype="float32").model
    assert not any(type(module).__name__.startswith("Fast") for module in model.modules() if hasattr(module, "act_fn"))
