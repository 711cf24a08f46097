# SPDX-License-Identifier: Apache-2.0
"""Matrix products by oneDNN against torch's own, independent of this machine's default."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from longmem.backbone.backbone import Backbone
from longmem.backbone.fast import linear as fast_linear
from longmem.backbone.fast.linear import FastConv1D, FastLinear, use_fast_linear

UNIT_ROUNDOFF = 2.0**-24


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(fast_linear, "is_worthwhile", lambda: True)


def layers(inputs: int, outputs: int) -> list[tuple[nn.Module, nn.Module]]:
    """Return plain layers, and fast ones with equal parameters."""
    torch.manual_seed(0)
    conv = Conv1D(outputs, inputs)
    nn.init.normal_(conv.bias)
    plain = [nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False), conv]
    fast = [copy.deepcopy(layer) for layer in plain]
    for layer in fast:
        use_fast_linear(layer)
    assert [type(layer) for layer in fast] == [FastLinear, FastLinear, FastConv1D]
    return list(zip(plain, fast, strict=True))


def limit_of(layer: nn.Module, rows: Tensor) -> Tensor:
    """Return the largest possible difference of two float32 sums of equal terms."""
    absolute = copy.deepcopy(layer).double()
    for parameter in absolute.parameters():
        parameter.data = parameter.data.abs()
    return 2 * (rows.shape[-1] + 1) * UNIT_ROUNDOFF * absolute(rows.double().abs())


@pytest.mark.parametrize("shape", [(4, 33), (1, 300, 33), (2, 5, 33), (3, 33), (0, 33)])
@torch.no_grad()
def test_products_are_those_of_torch(shape: tuple[int, ...]) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for plain, fast in layers(33, 70):
        expected, found = plain(rows), fast(rows)
        assert found.shape == expected.shape
        assert ((found - expected).abs() <= limit_of(plain, rows)).all()


@pytest.mark.skipif(not fast_linear.is_worthwhile(), reason="a promise for processors that it is used on")
@torch.no_grad()
def test_numbers_depend_on_no_threads_and_no_other_rows() -> None:
    rows = torch.randn((512, 688), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    for _, fast in layers(688, 256):
        try:
            torch.set_num_threads(1)
            one = fast(rows)
            torch.set_num_threads(2)
            assert torch.equal(fast(rows), one)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(fast(rows[100:200]), one[100:200])


def test_gradients_are_recorded_as_before() -> None:
    rows = torch.randn((8, 16), generator=torch.Generator().manual_seed(1))
    for plain, fast in layers(16, 4):
        plain(rows).sum().backward()
        fast(rows).sum().backward()
        for expected, found in zip(plain.parameters(), fast.parameters(), strict=True):
            assert expected.grad is not None
            assert found.grad is not None
            assert torch.equal(found.grad, expected.grad)


@torch.no_grad()
def test_other_types_are_left_to_torch() -> None:
    for plain, fast in layers(16, 4):
        for dtype in (torch.bfloat16, torch.float64):
            rows = torch.randn((8, 16), generator=torch.Generator().manual_seed(1)).to(dtype)
            assert torch.equal(fast.to(dtype)(rows), plain.to(dtype)(rows))


def test_parameters_keep_their_names_and_derived_layers_their_forward() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Special(3, 3), Conv1D(3, 3))
    names = [name for name, _ in model.named_parameters()]
    use_fast_linear(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert [type(layer) for layer in model] == [FastLinear, Special, FastConv1D]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@torch.no_grad()
def test_a_model_says_the_same(
    family: str, small_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.arange(40)[None] % 30
    outputs = []
    for is_fast in (True, False):
        monkeypatch.setattr(fast_linear, "is_worthwhile", lambda is_fast=is_fast: is_fast)
        backbone = Backbone.load(small_backbone(family))
        kinds = {type(module) for module in backbone.model.modules()}
        assert bool(kinds & {FastLinear, FastConv1D}) is is_fast
        outputs.append(backbone.logits(backbone.forward(tokens, 1, 1).hidden[0]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "cpu", "expected"),
    [
        ("AVX512", "vendor_id : AuthenticAMD", True),
        ("AVX512", "vendor_id : GenuineIntel", False),
        ("AVX2", "vendor_id : AuthenticAMD", False),
        ("AVX512", None, False),
    ],
)
def test_which_processors_it_is_for(
    capability: str, cpu: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    info = tmp_path / "cpuinfo"
    if cpu is not None:
        info.write_text(cpu)
    monkeypatch.setattr(fast_linear, "CPU_INFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    fast_linear.is_worthwhile.cache_clear()
    try:
        assert fast_linear.is_worthwhile() is expected
    finally:
        monkeypatch.undo()
        fast_linear.is_worthwhile.cache_clear()
