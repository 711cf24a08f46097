# SPDX-License-Identifier: Apache-2.0
"""Every family against plain transformers: equal predictions, position-free keys, the right taps, no side effects."""

import json
import shutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from longmem.backbone import backbone as backbone_module
from longmem.backbone.backbone import Backbone
from longmem.backbone.families import FAMILIES
from longmem.backbone.fast.attention import ATTENTION
from longmem.backbone.loading import hash_weights, load_config
from longmem.backbone.small import SMALL_CONFIGS, byte_tokenizer
from longmem.errors import CheckpointError, ConfigError, UnknownFamilyError
from longmem.model.longmem import LongMem
from longmem.testing import save_small_backbone

# duplicated on purpose: a wrong path in the family's entry must not confirm itself
LAYERS = {
    "bloom": "transformer.h",
    "gemma3_text": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "granite": "model.layers",
    "llama": "model.layers",
    "mistral": "model.layers",
    "olmo2": "model.layers",
    "opt": "model.decoder.layers",
    "phi3": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
}
NORMS = {
    "bloom": "transformer.ln_f",
    "gemma3_text": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "granite": "model.norm",
    "llama": "model.norm",
    "mistral": "model.norm",
    "olmo2": "model.norm",
    "opt": "model.decoder.final_layer_norm",
    "phi3": "model.norm",
    "qwen2": "model.norm",
    "qwen3": "model.norm",
}
LEARNED_POSITIONS = ("gpt2", "opt")
ROTARY = ("gemma3_text", "gpt_neox", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
MEMORY_LAYER = 3

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def tokens_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).eval()


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def rotated(keys: Tensor, model: PreTrainedModel, layer: int) -> Tensor:
    """Return rotary-embedded keys [tokens, heads, head_dim] at positions 0, 1, ..., from the formula, in float64."""
    parameters = model.config.rope_parameters
    if "rope_theta" not in parameters:  # Gemma 3 has one entry for each kind of layer
        parameters = parameters[model.config.layer_types[layer]]
    width = int(keys.shape[-1] * parameters.get("partial_rotary_factor", 1.0))
    frequencies = parameters["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(len(keys), dtype=torch.float64)[:, None, None] * frequencies
    keys = keys.double()
    first, second, rest = keys[..., : width // 2], keys[..., width // 2 : width], keys[..., width:]
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin(), rest]
    return torch.cat(turned, dim=-1)


def test_every_family_has_a_small_model_here() -> None:
    assert sorted(FAMILIES) == sorted(SMALL_CONFIGS) == sorted(LAYERS) == sorted(NORMS)
    assert {"gpt2", "opt", "bloom", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"} <= set(FAMILIES)
    assert {"gemma3_text", "phi3", "olmo2", "granite"} <= set(FAMILIES)


@every_family
def test_log_probabilities_are_those_of_transformers(
    family: str, small_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module, "LOGIT_ROWS", 7)
    tokens = tokens_of(2, 48)
    with torch.no_grad():
        expected = plain(small_backbone(family))(tokens).logits.double().log_softmax(dim=-1)
    backbone = Backbone.load(small_backbone(family))
    output = backbone.forward(tokens, MEMORY_LAYER, 2)
    for row in range(2):
        for num_targets in (47, 14, 1):
            targets = tokens[row, 1 : 1 + num_targets]
            found = backbone.target_logprobs(output.hidden[row], targets)
            wanted = expected[row, :num_targets].gather(1, targets[:, None])[:, 0]
            assert found.dtype == torch.float32
            assert (found - wanted).abs().max() <= 1e-5
    assert backbone.target_logprobs(output.hidden[0], torch.empty(0, dtype=torch.long)).shape == (0,)
    # a flat prediction would agree with any model
    assert expected.amax(dim=-1).std() > 0.01


@every_family
def test_keys_and_values_are_the_attention_s_own_before_any_rotation(
    family: str, small_backbone: Callable[[str], Path]
) -> None:
    tokens = tokens_of(2, 48)
    model = plain(small_backbone(family))
    backbone = Backbone.load(small_backbone(family))
    for layer in (1, MEMORY_LAYER):
        cache = DynamicCache()  # without a configuration it keeps every position, sliding windows too
        with torch.no_grad():
            model(tokens, past_key_values=cache, use_cache=True)
        keys, values = cache.layers[layer].keys.transpose(1, 2), cache.layers[layer].values.transpose(1, 2)
        output = backbone.forward(tokens, layer, 2)
        assert output.keys.shape == (2, 48, backbone.shape.kv_heads, backbone.shape.head_dim)
        torch.testing.assert_close(output.values, values, rtol=0, atol=1e-6)
        if family in ROTARY:
            for row in range(2):
                torch.testing.assert_close(
                    rotated(output.keys[row], model, layer), keys[row].double(), rtol=0, atol=2e-5
                )
            assert (output.keys - keys).abs().max() > 0.1, "the cache's keys must be rotated, or this compares nothing"
        else:
            torch.testing.assert_close(output.keys, keys, rtol=0, atol=1e-6)


@every_family
def test_first_layer_keys_of_one_token_do_not_depend_on_its_place(
    family: str, small_backbone: Callable[[str], Path]
) -> None:
    output = Backbone.load(small_backbone(family)).forward(torch.full((1, 30), 65), 0, 2)
    spread = (output.keys - output.keys[:, :1]).abs().max()
    assert (spread < 1e-6) == (family not in LEARNED_POSITIONS)


@every_family
@pytest.mark.parametrize("every", [1, 2, 4])
def test_taps_are_the_hidden_states_before_the_final_norm(
    family: str, every: int, small_backbone: Callable[[str], Path]
) -> None:
    tokens = tokens_of(2, 40)
    model = plain(small_backbone(family))
    last: list[Tensor] = []
    blocks = attrgetter(LAYERS[family])(model)

    def keep_last(_module: nn.Module, _args: object, output: object) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    with torch.no_grad():
        blocks[-1].register_forward_hook(keep_last)
        reference = model(tokens, output_hidden_states=True)
    backbone = Backbone.load(small_backbone(family))
    output = backbone.forward(tokens, MEMORY_LAYER, every)
    wanted = [*reference.hidden_states[:-1:every], last[0]]
    assert output.taps.shape == (backbone.num_layers // every + 1, 2, 40, backbone.hidden_size)
    torch.testing.assert_close(output.taps, torch.stack(wanted), rtol=0, atol=1e-6)
    normed = attrgetter(NORMS[family])(model)(output.taps[-1])
    assert (normed - output.taps[-1]).abs().max() > 0.1, "the last tap must not have passed the norm already"
    if family != "opt":  # OPT's projection to the embedding width comes after its norm
        torch.testing.assert_close(normed, output.hidden, rtol=0, atol=1e-5)


@every_family
def test_nothing_is_left_behind(family: str, small_backbone: Callable[[str], Path]) -> None:
    backbone = Backbone.load(small_backbone(family))
    hooks, digest = num_hooks(backbone.model), backbone.digest()
    output = backbone.forward(tokens_of(1, 16), MEMORY_LAYER, 2)
    with pytest.raises(IndexError):
        backbone.forward(torch.full((1, 4), 100_000), MEMORY_LAYER, 2)
    assert num_hooks(backbone.model) == hooks == num_hooks(plain(small_backbone(family)))
    assert backbone.digest() == digest == hash_weights(plain(small_backbone(family)))
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not any(part.requires_grad for part in (output.keys, output.values, output.taps, output.hidden))


@every_family
def test_piece_by_piece_with_a_cache_is_the_same_forward(family: str, small_backbone: Callable[[str], Path]) -> None:
    tokens = tokens_of(1, 48)
    backbone = Backbone.load(small_backbone(family))
    whole = backbone.forward(tokens, MEMORY_LAYER, 2)
    cache = backbone.new_cache()
    parts = [backbone.forward(part, MEMORY_LAYER, 2, cache) for part in tokens.split([13, 1, 1, 9, 1, 1, 21, 1], dim=1)]
    for name, axis in (("keys", 1), ("values", 1), ("taps", 2), ("hidden", 1)):
        pieces = torch.cat([getattr(part, name) for part in parts], dim=axis)
        torch.testing.assert_close(pieces, getattr(whole, name), rtol=0, atol=2e-5)


@every_family
def test_a_reader_needs_no_blocks_of_the_backbone(family: str, small_backbone: Callable[[str], Path]) -> None:
    tokens = tokens_of(1, 16)
    backbone = Backbone.load(small_backbone(family))
    output = backbone.forward(tokens, MEMORY_LAYER, 2)
    before = backbone.target_logprobs(output.hidden[0], tokens[0, 1:])
    many = sum(parameter.numel() for parameter in backbone.model.parameters())
    backbone.drop_layers()
    assert sum(parameter.numel() for parameter in backbone.model.parameters()) < many
    assert torch.equal(backbone.target_logprobs(output.hidden[0], tokens[0, 1:]), before)


@every_family
def test_bfloat16_runs_and_gives_float32_log_probabilities(
    family: str, small_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(1, 40)
    # norms and activations in C, and attention, round other sums (test_fast_elementwise.py, test_fast_attention.py)
    monkeypatch.setattr("longmem.backbone.loading.use_fast_elementwise", lambda _model: None)
    backbone = Backbone.load(small_backbone(family), "bfloat16")
    if backbone.model.config._attn_implementation == ATTENTION:
        backbone.model.set_attn_implementation("sdpa")
    output = backbone.forward(tokens, MEMORY_LAYER, 2)
    assert {part.dtype for part in (output.keys, output.values, output.taps, output.hidden)} == {torch.bfloat16}
    with torch.no_grad():
        logits = plain(small_backbone(family), torch.bfloat16)(tokens).logits.float()
    found = backbone.target_logprobs(output.hidden[0], tokens[0, 1:])
    wanted = logits.log_softmax(dim=-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_digest_tells_weights_apart(tmp_path: Path, small_backbone: Callable[[str], Path]) -> None:
    save_small_backbone(tmp_path / "other", "llama", seed=1)
    one, again, other = (Backbone.load(path) for path in (small_backbone("llama"),) * 2 + (tmp_path / "other",))
    assert one.digest() == again.digest() != other.digest()
    with torch.no_grad():
        again.model.model.layers[2].mlp.down_proj.weight[3, 5] += 1e-6
    assert one.digest() != again.digest()


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_tied_embeddings_load(family: str, tmp_path: Path) -> None:
    save_small_backbone(tmp_path / "tied", family, tie_word_embeddings=True)
    tokens = tokens_of(1, 20)
    backbone = Backbone.load(tmp_path / "tied")
    with torch.no_grad():
        expected = plain(tmp_path / "tied")(tokens).logits[0]
    torch.testing.assert_close(backbone.logits(backbone.forward(tokens, 3, 2).hidden[0]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gptj", "mamba", "no-such-architecture"])
def test_unknown_family_lists_the_supported_ones(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for load in (load_config, Backbone.load):
        with pytest.raises(UnknownFamilyError) as caught:
            load(tmp_path)
        assert model_type in str(caught.value)
        assert all(family in str(caught.value) for family in FAMILIES)


@pytest.fixture
def damaged(small_backbone: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a private copy of a small Llama."""
    return Path(shutil.copytree(small_backbone("llama"), tmp_path / "damaged"))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        LongMem.from_backbone(folder, segment_tokens=32)
    for word in (str(folder), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"llama"', '{"model_type": 3}', '{"model_type": null}'])
def test_configuration_that_is_none(text: str, damaged: Path) -> None:
    (damaged / "config.json").write_text(text)
    refused(damaged)


def test_missing_configuration_and_missing_folder(damaged: Path) -> None:
    (damaged / "config.json").unlink()
    refused(damaged, "config")
    refused(damaged / "nowhere", "not found")


@pytest.mark.parametrize("damage", ["half", "empty", "header", "text"])
def test_damaged_weights(damage: str, damaged: Path) -> None:
    path = damaged / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {
            "half": data[: len(data) // 2],
            "empty": b"",
            "header": b"\xff" * 64 + data[64:],
            "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        }[damage]
    )
    refused(damaged, "safetensors")


def test_missing_weights(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    refused(damaged, "safetensors")


def test_pickled_weights_are_never_read(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    (damaged / "model.safetensors").unlink()
    torch.save(weights, damaged / "pytorch_model.bin")
    refused(damaged, "safetensors")


def test_incomplete_weights_are_not_made_up(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    refused(damaged, name)


def test_weights_of_another_shape(damaged: Path) -> None:
    values = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**values, "intermediate_size": 64}))
    refused(damaged, "mlp")


@pytest.mark.parametrize("layers", [2, 6])
def test_weights_of_another_depth(layers: int, damaged: Path) -> None:
    values = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**values, "num_hidden_layers": layers}))
    refused(damaged, "model.layers.")


def test_tokenizer_with_more_entries_than_the_backbone(damaged: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one-too-many"])
    tokenizer.save_pretrained(damaged)
    refused(damaged, "wrong tokenizer", "257")


def test_missing_tokenizer(damaged: Path) -> None:
    for path in damaged.glob("tokenizer*"):
        path.unlink()
    refused(damaged, "tokenizer")


def test_weights_that_are_not_numbers(damaged: Path) -> None:
    weights = load_file(damaged / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    refused(damaged, "NaN", "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"bloom"}))
def test_segment_beyond_the_positions_is_refused(family: str, small_backbone: Callable[[str], Path]) -> None:
    assert LongMem.from_backbone(small_backbone(family), segment_tokens=128).backbone.max_tokens == 128
    with pytest.raises(ConfigError, match="segment_tokens must be at most 128"):
        LongMem.from_backbone(small_backbone(family), segment_tokens=129)


@pytest.mark.parametrize(
    ("name", "value"),
    [("final_logit_softcapping", 30.0), ("attn_logit_softcapping", 50.0), ("use_bidirectional_attention", True)],
)
def test_gemma_with_what_is_not_implemented_is_refused(name: str, value: object, tmp_path: Path) -> None:
    save_small_backbone(tmp_path / "capped", "gemma3_text", **{name: value})
    with pytest.raises(UnknownFamilyError, match=name):
        Backbone.load(tmp_path / "capped")


def test_the_small_granite_has_multipliers_that_matter(small_backbone: Callable[[str], Path], tmp_path: Path) -> None:
    """Check that equal log-probabilities prove something: without any of the multipliers they differ."""
    tokens = tokens_of(1, 24)
    expected = plain(small_backbone("granite"))(tokens).logits.log_softmax(dim=-1)
    for name in ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"):
        folder = Path(shutil.copytree(small_backbone("granite"), tmp_path / name))
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {name: 1.0}))
        assert (plain(folder)(tokens).logits.log_softmax(dim=-1) - expected).abs().max() > 0.01


def test_settings_that_the_backbone_cannot_take(small_backbone: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="float16"):
        Backbone.load(small_backbone("llama"), "float16")
    with pytest.raises(ConfigError, match="128"):
        LongMem.from_backbone(small_backbone("llama"), segment_tokens=132)
    with pytest.raises(ConfigError, match="layer_reduction"):
        LongMem.from_backbone(small_backbone("llama"), segment_tokens=32, layer_reduction=3)
    assert LongMem.from_backbone(small_backbone("llama"), segment_tokens=128).backbone.max_tokens == 128
    assert Backbone.load(small_backbone("bloom")).max_tokens is None
