# SPDX-License-Identifier: Apache-2.0
"""Attention in C against torch in float64, and whole models against transformers' own attention."""

import ctypes
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from longmem.backbone.backbone import Backbone
from longmem.backbone.cache_assembly import CacheAssembly
from longmem.backbone.families import FAMILIES
from longmem.backbone.fast import attention as fast_attention
from longmem.backbone.small import save_small_backbone
from longmem.errors import ConfigError
from longmem.native import build

needs_instructions = pytest.mark.skipif(
    not fast_attention.is_available(), reason="needs a C compiler and a processor with AVX-512 BF16"
)
needs_tiles = pytest.mark.skipif(
    not (fast_attention.is_available() and fast_attention.has_tiles()),
    reason="needs a C compiler and a processor with AMX",
)
with_and_without_tiles = pytest.mark.parametrize(
    "tiles", [False, pytest.param(True, marks=needs_tiles)], ids=["vectors", "tiles"]
)
HALF_STEP = 2.0**-9
"""Largest relative error of rounding to bfloat16."""


def parts(heads: int, kv_heads: int, tokens: int, count: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(number, length, dim, generator=random).bfloat16()
        for number, length in ((heads, tokens), (kv_heads, count), (kv_heads, count))
    )


def exact(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    keys, values = (part.double().repeat_interleave(len(queries) // len(part), 0) for part in (keys, values))
    mask = fast_attention.aligned_mask(queries.shape[1], keys.shape[1])
    return scaled_dot_product_attention(queries.double(), keys, values, attn_mask=mask, scale=scale).transpose(0, 1)


@needs_instructions
@with_and_without_tiles
@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "count", "dim"),
    [
        (9, 3, 100, 137, 64),  # SmolLM2
        (4, 4, 16, 16, 16),
        (4, 4, 65, 321, 96),
        (8, 2, 130, 1000, 128),
        (4, 1, 33, 40, 80),
        (2, 1, 300, 600, 256),
        (1, 1, 257, 257, 48),
    ],
)
def test_attention_is_within_the_rounding_of_its_inputs(
    heads: int, kv_heads: int, tokens: int, count: int, dim: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_attention, "has_tiles", lambda: tiles)
    queries, keys, values = parts(heads, kv_heads, tokens, count, dim)
    scale = dim**-0.5
    found = fast_attention.attend(queries, keys, values, scale)
    # weights and outputs are rounded once each; the float32 sums and exponentials add a small part of that
    bound = 2 * HALF_STEP * 1.05 * float(values.abs().max())
    assert float((found - exact(queries, keys, values, scale)).abs().max()) <= bound


@needs_instructions
@with_and_without_tiles
def test_large_scores_and_a_query_that_sees_one_key(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_attention, "has_tiles", lambda: tiles)
    queries, keys, values = parts(2, 2, 40, 40, 32)
    found = fast_attention.attend(queries * 100, keys * 100, values, 1.0)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[0], values[:, 0], atol=0, rtol=0)


@needs_instructions
@with_and_without_tiles
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_not_hidden(
    number: float, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of NaN, or a value that is not finite, shows in the queries that see it."""
    monkeypatch.setattr(fast_attention, "has_tiles", lambda: tiles)
    queries, keys, values = parts(2, 1, 40, 300, 32)
    harmed = values.clone()
    harmed[0, 280, 5] = number
    found = fast_attention.attend(queries, keys, harmed, 0.2)
    assert not bool(found[20:, :, 5].isfinite().any())
    keys[0, 280, 5] = math.nan
    assert bool(fast_attention.attend(queries, keys, values, 0.2)[20:].isnan().all())


@needs_tiles
@pytest.mark.parametrize("palette", [0, 1])
def test_shapes_of_tiles_are_left_as_they_were(palette: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries shape the tiles of a thread for their own products."""
    library = tmp_path / "tile_shapes.so"
    folder = Path(build.__file__).parent
    flags = [*build.FLAGS, "-I", str(folder), "-Wno-unused-function", "-o", str(library)]
    subprocess.run([str(build.find_compiler()), *flags, str(Path(__file__).with_name("tile_shapes.c"))], check=True)
    native, results = build.native_library(), []

    class Checked:
        """The library, whose function that reads is called by the one in C."""

        def __getattr__(self, name: str) -> Any:
            return getattr(native, name)

        def longmem_attention_read(self, params: Any, _first: int, _step: int, scratch: int) -> None:
            survive = ctypes.CDLL(str(library)).shapes_survive
            read = ctypes.cast(native.longmem_attention_read, ctypes.c_void_p)
            results.append(survive(read, params, ctypes.c_void_p(scratch), palette))

    monkeypatch.setattr(fast_attention, "native_library", Checked)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fast_attention.attend(*parts(2, 1, 40, 300, 32), 0.2)
    finally:
        torch.set_num_threads(before)
    assert results == [1]


@needs_instructions
@with_and_without_tiles
@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scales_that_are_not_positive_go_to_torch(scale: float, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_attention, "has_tiles", lambda: tiles)
    queries, keys, values = (part[None] for part in parts(2, 2, 40, 60, 32))
    with torch.no_grad():
        found, _ = fast_attention.attention_forward(nn.Identity(), queries, keys, values, None, scaling=scale)
    torch.testing.assert_close(found[0].double(), exact(queries[0], keys[0], values[0], scale), atol=0.02, rtol=0)
    with pytest.raises(AssertionError):
        fast_attention.attend(queries[0], keys[0], values[0], scale)


@needs_instructions
@with_and_without_tiles
@pytest.mark.parametrize("dim", [48, 64, 160])
def test_a_token_depends_on_its_own_keys_alone(dim: int, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the tokens after it, nor the number of tokens or threads, nor strides move a bit."""
    monkeypatch.setattr(fast_attention, "has_tiles", lambda: tiles)
    queries, keys, values = parts(6, 2, 200, 900, dim)
    whole = fast_attention.attend(queries, keys, values, 0.125)
    part = fast_attention.attend(queries[:, 60:131], keys[:, :831], values[:, :831], 0.125)
    assert torch.equal(part, whole[60:131])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fast_attention.attend(queries, keys, values, 0.125), whole)
    finally:
        torch.set_num_threads(before)
    by_token = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in (queries, keys, values)]
    assert torch.equal(fast_attention.attend(*by_token, 0.125), whole)


@needs_instructions
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_models_compute_what_they_compute_with_the_attention_of_torch(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check every family with and without a cache in front; sliding windows are shorter than the text."""
    # heads of 16
    sizes = {"gpt2": {"n_embd": 64}, "gemma3_text": {"head_dim": 16}, "qwen3": {}}.get(family, {"hidden_size": 64})
    save_small_backbone(tmp_path / family, family, **sizes)
    calls = []
    wanted = fast_attention.attend

    def counted(*arguments: object) -> Tensor:
        calls.append(arguments)
        return wanted(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fast_attention, "attend", counted)
    fast, exact_model = (Backbone.load(tmp_path / family, dtype) for dtype in ("bfloat16", "float32"))
    plain = Backbone.load(tmp_path / family, "bfloat16")
    if plain.model.config._attn_implementation == fast_attention.ATTENTION:
        plain.model.set_attn_implementation("sdpa")
    tokens = torch.randint(0, 200, (2, 90), generator=torch.Generator().manual_seed(1))

    def hidden(backbone: Backbone) -> Tensor:
        cache = backbone.new_cache()
        with torch.no_grad():
            first = backbone.run(tokens[:, :40], cache)
            return torch.cat([first, backbone.run(tokens[:, 40:], cache)], dim=1).float()

    expected = hidden(exact_model)
    errors = [float((hidden(each) - expected).square().mean()) for each in (fast, plain)]
    assert errors[0] <= 1.2 * errors[1], "an error of the kind that bfloat16 has anyway"
    # BLOOM's attention is its own; in the other two, every window cuts
    assert bool(calls) == (family not in ("bloom", "mistral", "phi3"))


@needs_instructions
def test_a_cache_from_memory_goes_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_backbone(tmp_path / "llama", "llama", head_dim=16)
    backbone = Backbone.load(tmp_path / "llama", "bfloat16")
    tokens = torch.randint(0, 200, (1, 80), generator=torch.Generator().manual_seed(1))
    read = backbone.forward(tokens[:, :50], range(backbone.num_layers), None)
    calls = []
    wanted = fast_attention.attend

    def counted(*arguments: object) -> Tensor:
        calls.append(arguments)
        return wanted(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fast_attention, "attend", counted)
    backbone.run(tokens[:, 50:], CacheAssembly(backbone).assemble([read.keys[0]], [read.values[0]]))
    assert len(calls) == backbone.num_layers


@needs_instructions
def test_few_tokens_and_gradients_go_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_backbone(tmp_path / "llama", "llama", head_dim=16)
    backbone = Backbone.load(tmp_path / "llama", "bfloat16")
    exact_model = Backbone.load(tmp_path / "llama", "float32")
    tokens = torch.randint(0, 200, (1, 64), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(fast_attention, "attend", lambda *_: pytest.fail("these go to torch"))
    hidden = []
    for each in (backbone, exact_model):
        cache = each.new_cache()
        with torch.no_grad():
            steps = [each.run(part, cache) for part in tokens.split(8, dim=1)]
        hidden.append(torch.cat(steps, dim=1).float())
    # the keys of earlier steps are read: without them, differences are as large as the states
    assert float((hidden[0] - hidden[1]).square().mean()) < 0.01 * float(hidden[1].square().mean())
    embedded = backbone.model.get_input_embeddings()(tokens).requires_grad_()
    backbone.model(inputs_embeds=embedded).logits.float().sum().backward()
    assert embedded.grad is not None
    assert bool(embedded.grad.isfinite().all())


def test_code_that_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ConfigError("no folder")

    monkeypatch.setattr(fast_attention, "native_library", fails)
    monkeypatch.setattr(fast_attention, "find_compiler", lambda: "cc")
    with pytest.warns(UserWarning, match="log-probabilities are computed by torch, several times slower: no folder"):
        assert not fast_attention.is_available.__wrapped__()
    monkeypatch.setattr(fast_attention, "find_compiler", lambda: None)
    assert not fast_attention.is_available.__wrapped__()
