# SPDX-License-Identifier: Apache-2.0
"""The SideNet's recurrence against transformers' own blocks called one by one; gradients; step-by-step decoding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from longmem.backbone.families import FAMILIES
from longmem.config import PAPER_FORM
from longmem.dtypes import to_tensor
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.sidenet.sidenet import ReadingOutput
from longmem.testing import save_small_backbone
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey
from tests.inputs import DEFAULT_FORM, FORMS, sidenet_input

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
LENGTH = 40  # longer than the sliding windows of the small models


def tokens_of(batch: int = 1, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model: LongMem, tokens: Tensor, views: list[MemoryView | None]) -> Tensor:
    """Return the SideNet's hidden states."""
    with torch.no_grad():
        hidden: Tensor = model.sidenet(sidenet_input(model, tokens, views), model.search).hidden
    return hidden


def view_for(model: LongMem, random_view: Callable[..., MemoryView], **changes: Any) -> MemoryView:
    shape = model.backbone.shape
    settings = {"chunks": 20, "dtype": torch.float16, "chunk": model.config.chunk_tokens, "key_space": model.key_space}
    return random_view(shape.kv_heads, shape.head_dim, **settings | changes)


def set_scale(model: LongMem, *values: float) -> None:
    with torch.no_grad():
        model.sidenet.scale.copy_(torch.tensor(values).expand_as(model.sidenet.scale))


@every_family
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_untrained_is_the_backbone(
    family: str, reduction: int, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, unsettled=False, layer_reduction=reduction)
    tokens = tokens_of(2)
    backbone = model.backbone.forward(tokens, model.sidenet.memory_layer, reduction)
    expected = [model.backbone.target_logprobs(backbone.hidden[row], tokens[row, 1:]) for row in range(2)]
    view = view_for(model, random_view)
    with torch.no_grad():
        output = model.sidenet(sidenet_input(model, tokens, [None, view]), model.search)
    assert [reading is None for reading in output.readings] == [True, False]
    torch.testing.assert_close(output.hidden, backbone.hidden, rtol=0, atol=2e-5)
    for row in range(2):
        found = model.backbone.target_logprobs(output.hidden[row], tokens[row, 1:])
        assert (found - expected[row]).abs().max() <= 1e-5


@every_family
def test_untrained_is_the_backbone_however_it_reads(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, unsettled=False, **{**DEFAULT_FORM, "copy_head": False})
    tokens = tokens_of(2)
    given = sidenet_input(model, tokens, [None, view_for(model, random_view)])
    expected = model.backbone.forward(tokens, model.sidenet.memory_layer, 2).hidden
    with torch.no_grad():
        output = model.sidenet(given, model.search)
    assert [reading is None for reading in output.readings] == [True, False]
    assert output.copies == [None, None]
    torch.testing.assert_close(output.hidden, expected, rtol=0, atol=2e-5)


@every_family
def test_every_family_reads_in_the_default_form(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    """Check an untrained model: hidden states equal the backbone's, and only the copy head changes the distribution."""
    model = small_model(family, unsettled=False, **DEFAULT_FORM)
    tokens = tokens_of()
    given = sidenet_input(model, tokens, [view_for(model, random_view)])
    with torch.no_grad():
        output = model.sidenet(given, model.search)
    backbone = model.backbone.forward(tokens, model.sidenet.memory_layer, 2).hidden
    torch.testing.assert_close(output.hidden, backbone, rtol=0, atol=2e-5)
    (copies,) = output.copies
    assert copies is not None
    assert ((copies.share > 0) & (copies.share < 1)).all()
    plain = model.backbone.target_logprobs(backbone[0], tokens[0, 1:])
    mixed = model.target_logprobs(output, 0, tokens[0, 1:])
    assert mixed.isfinite().all()
    torch.testing.assert_close(
        mixed, copies.mix_targets(plain, tokens[0, 1:]), rtol=0, atol=1e-5, msg="the copies of the row are mixed in"
    )
    assert (mixed - plain).abs().max() > 0.01


VARIANTS = {
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, not scaled": ("gpt2", {"scale_attn_weights": False}),
    "opt-350m": ("opt", {"do_layer_norm_before": False}),
    "opt, one width": ("opt", {"word_embed_proj_dim": 32}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, all rotated": ("gpt_neox", {"rotary_pct": 1.0}),
    "bloom, residual after the norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "llama, one head for all": ("llama", {"num_key_value_heads": 1}),
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, whole context": ("mistral", {"sliding_window": None}),
    "qwen2, whole context": ("qwen2", {"use_sliding_window": False}),
    "qwen3, windows in turn": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"] * 2},
    ),
    "qwen3, only windows are copied": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "gemma3, windows only are copied": (
        "gemma3_text",
        {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 9},
    ),
    "phi3, whole context": ("phi3", {"sliding_window": None}),
    "phi3, partly rotated": (
        "phi3",
        {
            "hidden_size": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        },
    ),
    "phi3, long positions": (
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 3.0, 4.0, 5.0],
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "granite, biased": ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "olmo2, one head for all": ("olmo2", {"num_key_value_heads": 1}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_of_the_families(variant: str, tmp_path: Path, random_view: Callable[..., MemoryView]) -> None:
    family, changes = VARIANTS[variant]
    save_small_backbone(tmp_path / "backbone", family, **changes)
    model = LongMem.from_backbone(tmp_path / "backbone", **{**PAPER_FORM, "segment_tokens": 48, "top_k": 16})
    tokens = tokens_of()
    view = view_for(model, random_view)
    expected = model.backbone.forward(tokens, 3, 2).hidden
    torch.testing.assert_close(run(model, tokens, [view]), expected, rtol=0, atol=2e-5)
    set_scale(model, 1.0)
    whole = run(model, tokens, [view])
    assert (whole - expected).abs().max() > 0.01
    torch.testing.assert_close(step_by_step(model, tokens, view, [1, 29, 1, 9]), whole, rtol=0, atol=5e-5)
    # a SideNet memory layer with the wrong scale or projections would not match keys of the backbone's layer
    attention = model.backbone.family.attention_of(model.backbone.layers[3])
    copied = model.sidenet._family.attention_of(model.sidenet.layers[1])
    assert model.backbone.family.scale_of(attention) == model.sidenet._family.scale_of(copied)


# ---- the recurrence, written out


def causal_mask(length: int, window: int | None = None) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (window or length))
    return torch.zeros((length, length)).masked_fill(~seen, -1e30)[None, None]


Block = Callable[[int, Tensor], Tensor]


def block_of_gpt2(model: PreTrainedModel, blocks: nn.ModuleList, length: int) -> Block:
    return lambda index, x: blocks[index](x, attention_mask=causal_mask(length))


def block_of_rotary(model: PreTrainedModel, blocks: nn.ModuleList, length: int) -> Block:
    everywhere = "sliding_attention" if model.config.model_type in ("mistral", "phi3") else "full_attention"
    kinds = getattr(model.config, "layer_types", None) or [everywhere] * len(blocks)
    # Gemma 3 rotates by another base in sliding layers
    by_kind = model.config.model_type == "gemma3_text"
    inputs = torch.zeros((1, length, 1)), torch.arange(length)[None]
    angles_of = {kind: model.base_model.rotary_emb(*inputs, *([kind] if by_kind else [])) for kind in set(kinds)}

    def block(index: int, x: Tensor) -> Tensor:
        window = model.config.sliding_window if kinds[index] == "sliding_attention" else None
        angles = angles_of[kinds[index]]
        return blocks[index](x, attention_mask=causal_mask(length, window), position_embeddings=angles)

    return block


def block_of_bloom(model: PreTrainedModel, blocks: nn.ModuleList, length: int) -> Block:
    heads = model.config.n_head
    slopes = torch.tensor([2 ** (-8 * (head + 1) / heads) for head in range(heads)])
    alibi = slopes[:, None, None] * torch.arange(length)
    return lambda index, x: blocks[index](x, alibi=alibi, attention_mask=causal_mask(length))[0]


NAIVE_BLOCKS = {
    "bloom": block_of_bloom,
    "gemma3_text": block_of_rotary,
    "gpt2": block_of_gpt2,
    "gpt_neox": block_of_rotary,
    "granite": block_of_rotary,
    "llama": block_of_rotary,
    "mistral": block_of_rotary,
    "olmo2": block_of_rotary,
    "opt": block_of_gpt2,
    "phi3": block_of_rotary,
    "qwen2": block_of_rotary,
    "qwen3": block_of_rotary,
}
STACKS = {
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}
NORMS = {
    "bloom": "transformer.ln_f",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}


SCALES = [(1.0, 1.0), (0.3, -0.7)]
RECURRENCES = [(family, scale) for family in sorted(NAIVE_BLOCKS) for scale in SCALES] + [
    ("qwen3, windows in turn", SCALES[0]),
    ("qwen3, only windows are copied", SCALES[0]),
]


@pytest.mark.parametrize(("name", "scale"), RECURRENCES)
def test_recurrence_written_out_with_transformers_own_blocks(
    name: str, scale: tuple[float, float], tmp_path: Path
) -> None:
    """Check the paper's form with a scale of 1, and the general form with any other."""
    family, changes = VARIANTS.get(name, (name, {}))
    save_small_backbone(tmp_path / "backbone", family, **changes)
    reference = AutoModelForCausalLM.from_pretrained(str(tmp_path / "backbone")).eval().requires_grad_(False)
    tokens = tokens_of()
    blocks = reference.get_submodule(STACKS.get(family, "model.layers"))
    norm = reference.get_submodule(NORMS.get(family, "model.norm"))
    block = NAIVE_BLOCKS[family](reference, blocks, LENGTH)

    # the backbone, block by block: H[0] … H[4]
    hidden = [reference(tokens, output_hidden_states=True).hidden_states[0]]
    for index in range(4):
        hidden.append(block(index, hidden[-1]))
    logits = reference(tokens).logits
    project = reference.model.decoder.project_out if family == "opt" else nn.Identity()
    head = reference.get_output_embeddings()
    divisor = getattr(reference.config, "logits_scaling", 1.0)  # Granite's
    torch.testing.assert_close(head(project(norm(hidden[-1]))) / divisor, logits, rtol=0, atol=1e-4)

    x = hidden[0]
    for index in range(2):
        x = x + scale[index] * (block(2 * index + 1, x) - x) + (hidden[2 * index + 2] - hidden[2 * index])
    model = LongMem.from_backbone(tmp_path / "backbone", **{**PAPER_FORM, "segment_tokens": 48, "top_k": 16})
    set_scale(model, *scale)
    found = run(model, tokens, [None])
    torch.testing.assert_close(found, project(norm(x)), rtol=0, atol=5e-5)
    assert (head(found) - logits).abs().max() > 0.1


@every_family
def test_layers_start_as_copies_and_memory_layer_is_the_stored_one(
    family: str, small_model: Callable[..., LongMem]
) -> None:
    model = small_model(family, layer_reduction=2)
    assert (model.sidenet.memory_layer, model.sidenet.memory_index) == (3, 1)
    for index, layer in enumerate(model.sidenet.layers):
        source = model.backbone.layers[2 * index + 1]
        assert type(layer) is type(source)
        for (name, copied), (_, original) in zip(layer.named_parameters(), source.named_parameters(), strict=True):
            assert torch.equal(copied, original), name
            assert copied.data_ptr() != original.data_ptr(), f"{name} is shared: training would change the backbone"
    sidenet_of_memory_layer = model.sidenet.layers[model.sidenet.memory_index]
    stored = model.backbone.layers[model.sidenet.memory_layer]
    assert all(
        torch.equal(a, b) for a, b in zip(sidenet_of_memory_layer.parameters(), stored.parameters(), strict=True)
    )


def test_memory_index_follows_memory_layer(small_model: Callable[..., LongMem]) -> None:
    assert small_model("llama", memory_layer=1).sidenet.memory_index == 0
    assert small_model("llama", layer_reduction=1).sidenet.memory_index == 3
    assert small_model("llama", layer_reduction=1, memory_layer=0).sidenet.memory_index == 0
    assert small_model("llama", layer_reduction=4).sidenet.memory_index == 0


@every_family
def test_only_the_sidenet_s_own_weights_are_saved_and_trained(family: str, small_model: Callable[..., LongMem]) -> None:
    sidenet = small_model(family).sidenet
    names = {name.split(".")[0] for name in sidenet.state_dict()}
    assert names == {"scale", "gate", "layers", "norm"}


def test_the_default_form_has_a_reader_and_a_copy_head_of_its_own(small_model: Callable[..., LongMem]) -> None:
    names = {name.split(".")[0] for name in small_model("llama", **DEFAULT_FORM).sidenet.state_dict()}
    assert names == {"scale", "gate", "layers", "norm", "reader", "copy_head"}


# ---- gradients


def trainable(model: LongMem) -> LongMem:
    """Return the model as trained, with a copy head that already uses hidden states: its last weights start at zero."""
    for name, parameter in model.sidenet.named_parameters():
        parameter.requires_grad_(name != "reader.key_mean")
    if model.sidenet.copy_head is not None:
        for mlp in (model.sidenet.copy_head.mlp, model.sidenet.copy_head.repeats.mlp):
            torch.nn.init.normal_(mlp[2].weight, generator=torch.Generator().manual_seed(1))
    return model


@every_family
@every_form
def test_gradients_reach_the_sidenet_and_nothing_else(
    family: str, form: dict[str, Any], small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = trainable(small_model(family, **form))
    view = view_for(model, random_view)
    tokens = tokens_of()
    # the memory holds the segment's own words, so that repeats exist
    view.tokens.copy_(tokens[0, torch.randint(LENGTH, view.tokens.shape, generator=torch.Generator().manual_seed(5))])
    view.tokens.view(-1)[:10] = tokens[0, :10]
    given = sidenet_input(model, tokens, [view])
    output = model.sidenet(given, model.search)
    (-model.target_logprobs(output, 0, tokens[0, 1:]).mean()).backward()
    for name, parameter in model.sidenet.named_parameters():
        if name == "reader.key_mean":
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, f"{name} receives no gradient"
        assert parameter.grad.isfinite().all(), name
        # a constant added to every key does not change a softmax
        if not name.endswith(("k_proj.bias",)):
            assert parameter.grad.abs().max() > 0, f"{name} has a gradient of zero"
    assert all(parameter.grad is None for parameter in model.backbone.model.parameters())
    assert not any(part.requires_grad for part in (given.keys, view.keys, view.values))
    assert not output.readings[0].chunk_ids.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients_of_gate_and_scale_are_the_slopes(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family)
    view = view_for(model, random_view)
    tokens = tokens_of()

    def loss() -> Tensor:
        hidden = model.sidenet(sidenet_input(model, tokens, [view]), model.search).hidden
        return -model.backbone.target_logprobs(hidden[0], tokens[0, 1:]).double().mean()

    loss().backward()
    step = 0.02
    # the last layer reads the memory: moving its gate or its scale does not move any query, so the ids stay
    for parameter, index in [(model.sidenet.gate, 0), (model.sidenet.gate, 3), (model.sidenet.scale, 1)]:
        with torch.no_grad():
            start = float(parameter[index])
            ends = []
            for end in (start - step, start + step):
                parameter[index] = end
                ends.append(float(loss()))
            parameter[index] = start
        slope = (ends[1] - ends[0]) / (2 * step)
        assert parameter.grad is not None
        assert float(parameter.grad[index]) == pytest.approx(slope, rel=0.02, abs=2e-4)


def test_without_memory_the_gate_is_not_used(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama")
    before = run(model, tokens_of(), [None])
    with torch.no_grad():
        model.sidenet.gate += 1.0
    assert torch.equal(run(model, tokens_of(), [None]), before)


# ---- batches and step-by-step decoding


@every_family
@every_form
def test_rows_of_a_batch_read_their_own_memory_only(
    family: str, form: dict[str, Any], small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, **form)
    tokens = tokens_of(3)
    views = [view_for(model, random_view), None, view_for(model, random_view, seed=9, chunks=2)]
    with torch.no_grad():
        together = model.sidenet(sidenet_input(model, tokens, views), model.search)
        for row in range(3):
            given = sidenet_input(model, tokens[row : row + 1], [views[row]])
            alone = model.sidenet(given, model.search)
            torch.testing.assert_close(together.hidden[row], alone.hidden[0], rtol=0, atol=2e-5)
            logprobs = [model.target_logprobs(*of, tokens[row, 1:]) for of in ((together, row), (alone, 0))]
            torch.testing.assert_close(*logprobs, rtol=0, atol=5e-5)
    assert (together.hidden[0] - run(model, tokens[:1], [None])[0]).abs().max() > 0.01


def pieces(model: LongMem, tokens: Tensor, view: MemoryView | None, lengths: list[int]) -> list[ReadingOutput]:
    """Return the outputs of a segment that is given in pieces."""
    caches = model.backbone.new_cache(), model.sidenet.new_cache()
    outputs, start = [], 0
    for part in tokens.split(lengths, dim=1):
        with torch.no_grad():
            given = sidenet_input(model, part, [view], caches, tokens[:, :start])
            outputs.append(model.sidenet(given, model.search, caches[1]))
        start += part.shape[1]
    return outputs


def step_by_step(model: LongMem, tokens: Tensor, view: MemoryView | None, lengths: list[int]) -> Tensor:
    return torch.cat([output.hidden for output in pieces(model, tokens, view, lengths)], dim=1)


STEPS = [(family, 2, True) for family in sorted(FAMILIES)] + [
    # learned positions, ALiBi, and sliding windows in all layers and in some
    (family, reduction, with_memory)
    for family in ("gpt2", "bloom", "mistral", "qwen2")
    for reduction, with_memory in ((1, True), (4, True), (2, False))
]


@pytest.mark.parametrize(("family", "reduction", "with_memory"), STEPS)
def test_step_by_step_is_the_whole_forward(
    family: str,
    reduction: int,
    with_memory: bool,
    small_model: Callable[..., LongMem],
    random_view: Callable[..., MemoryView],
) -> None:
    model = small_model(family, layer_reduction=reduction)
    view = view_for(model, random_view) if with_memory else None
    tokens = tokens_of()
    whole = run(model, tokens, [view])
    found = step_by_step(model, tokens, view, [1, 20, 1, 16, 1, 1])  # past the sliding windows in a jump
    torch.testing.assert_close(found, whole, rtol=0, atol=5e-5)


@every_family
def test_step_by_step_copies_what_the_whole_forward_does(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    # float32, because a key rounded to half precision may round differently in a piece
    model = small_model(family, kv_dtype="float32", **DEFAULT_FORM)
    view = view_for(model, random_view, chunks=40)
    tokens = tokens_of()
    view.tokens[:40, 0] = tokens[0]  # the segment repeats what is stored, so that runs cross the pieces
    with torch.no_grad():
        (whole,) = model.sidenet(sidenet_input(model, tokens, [view]), model.search).copies
    assert whole is not None
    first = 0
    for output in pieces(model, tokens, view, [1, 20, 1, 16, 1, 1]):
        (piece,) = output.copies
        assert piece is not None
        last = first + len(piece.share)
        logits = model.backbone.logits(output.hidden[0])
        expected = whole.rows(slice(first, last))
        torch.testing.assert_close(piece.mix_logits(logits), expected.mix_logits(logits), rtol=0, atol=1e-4)
        first = last
    assert first == LENGTH


@every_family
def test_a_reader_without_the_backbone_s_blocks_gives_the_same(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, **DEFAULT_FORM)
    view, tokens = view_for(model, random_view), tokens_of()
    with torch.no_grad():
        given = sidenet_input(model, tokens, [view])
        before = model.target_logprobs(model.sidenet(given, model.search), 0, tokens[0, 1:])
        model.backbone.drop_layers()
        after = model.target_logprobs(model.sidenet(given, model.search), 0, tokens[0, 1:])
    assert torch.equal(before, after)


@every_family
def test_score_does_not_depend_on_preparing_worker(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family, **DEFAULT_FORM)
    (segment,) = cut_segments(DocumentKey("", "d"), tokens_of()[0].int().numpy(), LENGTH)
    view = replace(view_for(model, random_view), end_token=0)
    encoded, prepared = (model.encode(segment, prepare=prepare) for prepare in (False, True))
    assert len(prepared.state) < len(encoded.state) == len(model.sidenet.layers) + 1
    scores = [model.score_segment(segment, each.block.keys, each.state, view) for each in (encoded, prepared)]
    assert np.array_equal(scores[0].logprobs, scores[1].logprobs)
    again = model.sidenet.prepare(tokens_of(), to_tensor(prepared.state)[:, None])
    assert np.array_equal(again[:, 0].numpy(), prepared.state), "what is prepared stays as it is"


@every_family
def test_no_hook_stays_and_the_backbone_is_untouched(
    family: str, small_model: Callable[..., LongMem], random_view: Callable[..., MemoryView]
) -> None:
    model = small_model(family)

    def hooks() -> int:
        modules = [*model.sidenet.modules(), *model.backbone.model.modules()]
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    before, digest = hooks(), model.backbone.digest()
    alone = model.backbone.forward(tokens_of(), 3, 2).hidden
    run(model, tokens_of(), [view_for(model, random_view)])
    with pytest.raises(ValueError):  # no view for either row
        run(model, tokens_of(2), [])
    assert hooks() == before
    assert model.backbone.digest() == digest
    assert torch.equal(model.backbone.forward(tokens_of(), 3, 2).hidden, alone)
