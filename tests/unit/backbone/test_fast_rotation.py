# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in C: the numbers of transformers' own function, on processors with AVX-512 BF16."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from longmem.backbone.backbone import Backbone
from longmem.backbone.families import FAMILIES
from longmem.backbone.fast import modules
from longmem.backbone.fast.attention import is_available
from longmem.backbone.fast.rotation import rotate, rotation_of, use_fast_rotation
from longmem.backbone.small import save_small_backbone

needs_bf16 = pytest.mark.skipif(not is_available(), reason="needs a C compiler, and a processor with AVX-512 BF16")
THEIRS = modeling_llama.apply_rotary_pos_emb


def rows_and_tables(batch: int, heads: int, tokens: int, dim: int, tables: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows as an attention has them, with tokens before heads in memory, and any numbers as tables."""
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(batch, tokens, heads, dim, generator=random).bfloat16().transpose(1, 2)
    cos, sin = (torch.randn(tables, tokens, dim, generator=random).bfloat16() for _ in range(2))
    return rows, cos, sin


@needs_bf16
@pytest.mark.parametrize(
    "shape", [(1, 9, 7, 64, 1), (3, 2, 5, 64, 3), (3, 2, 5, 64, 1), (2, 3, 4, 16, 2), (1, 1, 1, 2, 1), (1, 2, 3, 96, 1)]
)
def test_every_bit_is_that_of_transformers(shape: tuple[int, int, int, int, int]) -> None:
    rows, cos, sin = rows_and_tables(*shape)
    for given in (rows, rows.contiguous(), rows.flip(2), torch.cat([rows, rows], dim=3)[..., : rows.shape[3]]):
        found, (expected, _) = rotate(given, cos, sin), THEIRS(given, given, cos, sin)
        assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@needs_bf16
@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize("tokens", [0, 5])
def test_no_rows_are_no_rows(heads: int, tokens: int) -> None:
    rows, cos, sin = rows_and_tables(1, heads, tokens, 64, 1)
    assert torch.equal(rotate(rows, cos, sin), THEIRS(rows, rows, cos, sin)[0])


@needs_bf16
def test_large_and_broken_numbers_go_through_as_in_torch() -> None:
    rows, cos, sin = rows_and_tables(1, 1, 6, 32, 1)
    for token, number in enumerate((torch.inf, -torch.inf, torch.nan, 3e38, 0.0, -0.0)):
        rows[0, 0, token, 3] = number
    torch.testing.assert_close(rotate(rows, cos, sin), THEIRS(rows, rows, cos, sin)[0], rtol=0, atol=0, equal_nan=True)


@needs_bf16
def test_numbers_depend_on_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, cos, sin = rows_and_tables(2, 9, 150, 64, 2)
    assert rows.numel() >= modules.THREADED
    alone = rotate(rows, cos, sin)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 2)
    try:
        together = rotate(rows, cos, sin)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


ROTATED = {"llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "gemma3_text"}


@needs_bf16
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_of_each_family_computes_the_same_bits(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_backbone(tmp_path / family, family)
    with monkeypatch.context() as patched:
        patched.setattr("longmem.backbone.loading.use_fast_rotation", lambda _model: None)
        plain = Backbone.load(tmp_path / family, dtype="bfloat16")
    fast = Backbone.load(tmp_path / family, dtype="bfloat16")
    replaced = [module for module in fast.model.modules() if type(module).__name__.startswith("Fast")]
    replaced = [module for module in replaced if type(module).__name__.endswith("Attention")]
    assert len(replaced) == (fast.num_layers if family in ROTATED else 0)
    tokens = torch.randint(0, 200, (2, 40), generator=torch.Generator().manual_seed(2))
    calls = []
    monkeypatch.setattr("longmem.backbone.fast.rotation.rotate", lambda *given: calls.append(given) or rotate(*given))
    found, expected = (each.forward(tokens, 1, None) for each in (fast, plain))
    assert torch.equal(found.hidden, expected.hidden)
    assert torch.equal(found.keys, expected.keys)
    assert len(calls) == 2 * len(replaced)


@needs_bf16
def test_gradients_and_other_types_go_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_backbone(tmp_path / "llama", "llama")
    backbone = Backbone.load(tmp_path / "llama", dtype="bfloat16")
    attention = backbone.family.attention_of(backbone.layers[0])
    rotation = rotation_of(attention)
    monkeypatch.setattr("longmem.backbone.fast.rotation.rotate", lambda *_: pytest.fail("computed in C"))
    rows, cos, sin = rows_and_tables(1, 2, 4, 16, 1)
    trained = rows.clone().requires_grad_()
    rotation(trained, rows, cos, sin)[0].float().sum().backward()
    assert trained.grad is not None
    for given in (
        (rows.float(), rows.float(), cos.float(), sin.float()),
        (rows, rows, cos.float(), sin.float()),
        (rows[..., ::2], rows[..., ::2], cos[..., ::2], sin[..., ::2]),
    ):
        for found, expected in zip(rotation(*given), THEIRS(*given), strict=True):
            assert torch.equal(found, expected)
    tokens_first = rows.transpose(1, 2)
    found, _ = rotation(tokens_first, tokens_first, cos, sin, unsqueeze_dim=2)
    assert torch.equal(found, THEIRS(tokens_first, tokens_first, cos, sin, unsqueeze_dim=2)[0])
    with pytest.raises(RuntimeError, match="must match"):
        rotation(rows, rows, cos[:, :-1], sin[:, :-1])


@needs_bf16
def test_a_model_is_pickled_and_copied(tmp_path: Path) -> None:
    save_small_backbone(tmp_path / "llama", "llama")
    model: Any = Backbone.load(tmp_path / "llama", dtype="bfloat16").model
    tokens = torch.arange(20)[None]
    expected = model(tokens).logits
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(again.model.layers[0].self_attn) is type(model.model.layers[0].self_attn)
        assert torch.equal(again(tokens).logits, expected)


@needs_bf16
def test_models_of_float32_stay_as_they_are(tmp_path: Path) -> None:
    save_small_backbone(tmp_path / "llama", "llama")
    model = Backbone.load(tmp_path / "llama", dtype="float32").model
    use_fast_rotation(model)
    assert type(model.model.layers[0].self_attn) is modeling_llama.LlamaAttention
    assert rotation_of(model.model.layers[0].self_attn) is THEIRS
