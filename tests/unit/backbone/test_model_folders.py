# SPDX-License-Identifier: Apache-2.0
"""Real-world model folders give the numbers of plain transformers, or one sentence and exit code 2."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from longmem.backbone.backbone import Backbone
from longmem.backbone.loading import load_config
from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import CheckpointError, DocumentError, ModelError
from pipelines.cli import app

TEXT = "The mill stood by the river, and the river by the mill. " * 4
SEGMENT = 64
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAPS = Path("/proc/self/maps")
BLOCK = "model.layers.1.self_attn"


@dataclass
class Folder:
    """Private copy of a small model that a test may change."""

    path: Path

    def edit(self, file: str = "config.json", **values: Any) -> None:
        """Set entries of a JSON file; None removes one."""
        held = json.loads((self.path / file).read_text()) | values
        (self.path / file).write_text(json.dumps({name: value for name, value in held.items() if value is not None}))

    @property
    def weights(self) -> dict[str, Tensor]:
        # copied, because the file that they are mapped from may be written
        return {name: tensor.clone() for name, tensor in load_file(self.path / WEIGHTS).items()}

    def save(self, weights: dict[str, Tensor], file: str = WEIGHTS) -> None:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, self.path / file, {"format": "pt"})

    def add(self, **weights: Tensor) -> None:
        self.save(self.weights | weights)

    def shard(self) -> list[str]:
        """Split the weights into three files and an index; return the files."""
        weights, places = self.weights, {}
        names = [f"model-0000{number + 1}-of-00003.safetensors" for number in range(3)]
        for number, file in enumerate(names):
            part = dict(sorted(weights.items())[number::3])
            self.save(part, file)
            places |= dict.fromkeys(part, file)
        (self.path / WEIGHTS).unlink()
        (self.path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return names

    def index(self, **places: str | None) -> None:
        listed = {**json.loads((self.path / INDEX).read_text())["weight_map"], **places}
        self.edit(INDEX, weight_map={name: file for name, file in listed.items() if file is not None})


@pytest.fixture
def folder(small_backbone: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Folder]:
    return lambda family: Folder(Path(shutil.copytree(small_backbone(family), tmp_path / "model")))


def plain_nats(path: Path) -> float:
    """Return the nats of TEXT by transformers alone: a start token first, segments independent."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sequence = [tokenizer.bos_token_id, *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    nats = 0.0
    for start in range(0, len(sequence) - 1, SEGMENT):
        targets = sequence[start + 1 : start + SEGMENT + 1]
        with torch.no_grad():
            logits = model(torch.tensor([sequence[start : start + SEGMENT]]), use_cache=False).logits[0]
        nats -= float(logits.log_softmax(-1)[range(len(targets)), targets].double().sum())
    return nats


def nats(path: Path) -> float:
    """Return the nats of TEXT by the loader that every command uses."""
    backbone = Backbone.load(path)
    sequence = torch.from_numpy(Tokenizer(path, backbone.vocab_size).sequence(TEXT)).long()
    total = 0.0
    for start in range(0, len(sequence) - 1, SEGMENT):
        targets = sequence[start + 1 : start + SEGMENT + 1]
        hidden = backbone.forward(sequence[None, start : start + SEGMENT], 1, 2).hidden[0]
        total -= float(backbone.target_logprobs(hidden, targets).double().sum())
    return total


def refused(path: Path, *words: str) -> None:
    """Check that opening raises one line that names the folder and contains these words."""
    with pytest.raises(ModelError) as caught:
        nats(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- valid folders


def _half(model: Folder) -> None:
    model.save({name: tensor.half() for name, tensor in model.weights.items()})
    model.edit(dtype=None, torch_dtype="float16")


def _without_prefix(model: Folder) -> None:
    model.save({name.removeprefix("model.").removeprefix("transformer."): each for name, each in model.weights.items()})


def _with_masks(model: Folder) -> None:
    """Add attention masks, like the first checkpoints of GPT-2."""
    mask = torch.ones(128, 128).tril()[None, None]
    model.add(**{"transformer.h.1.attn.bias": mask, "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)})


def _with_masks_of_neox(model: Folder) -> None:
    """Convert to Pythia's form: masks, frequencies, and the head under its first name."""
    weights = model.weights
    if "lm_head.weight" in weights:
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    turns = 10_000 ** -(torch.arange(0, 2, 2) / 2)
    weights["gpt_neox.layers.2.attention.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.bool).tril()
    weights["gpt_neox.layers.2.attention.masked_bias"] = torch.tensor(-1e9)
    weights["gpt_neox.layers.2.attention.rotary_emb.inv_freq"] = turns
    model.save(weights)


def _with_frequencies(model: Folder) -> None:
    model.add(**{f"{BLOCK}.rotary_emb.inv_freq": (10_000 ** -(torch.arange(0, 8, 2) / 8)).half()})


def _tied_and_written_twice(model: Folder) -> None:
    model.edit(tie_word_embeddings=True)
    model.add(**{"lm_head.weight": model.weights["model.embed_tokens.weight"].clone()})


def _tied_by_its_head(model: Folder) -> None:
    model.edit(tie_word_embeddings=True)
    weights = model.weights
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    model.save(weights)


def _pad_token_beyond(model: Folder) -> None:
    pad = {"id": 257, "content": "[PAD]", "special": True, "normalized": False}
    pad |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    held = json.loads((model.path / "tokenizer.json").read_text())["added_tokens"]
    model.edit("tokenizer.json", added_tokens=[*held, pad])


def _tokenizer_that_cuts(model: Folder) -> None:
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 256, "pad_type_id": 0}
    model.edit("tokenizer.json", truncation=cut, padding=pad | {"pad_token": "<|endoftext|>"})


def _rope(**scaling: Any) -> Callable[[Folder], None]:
    return lambda model: model.edit(rope_parameters=None, rope_theta=1e4, rope_scaling=scaling)


GOOD: dict[str, tuple[str, Callable[[Folder], Any]]] = {
    "half": ("llama", _half),
    "no prefix": ("llama", _without_prefix),
    "no prefix of gpt2": ("gpt2", _without_prefix),
    "no prefix of opt": ("opt", _without_prefix),
    "masks of gpt2": ("gpt2", _with_masks),
    "masks of gpt_neox": ("gpt_neox", _with_masks_of_neox),
    "frequencies": ("llama", _with_frequencies),
    "shards": ("llama", Folder.shard),
    "tied, written twice": ("llama", _tied_and_written_twice),
    "tied, only the head": ("llama", _tied_by_its_head),
    "pad beyond": ("llama", _pad_token_beyond),
    "tokenizer that cuts": ("llama", _tokenizer_that_cuts),
    "rope linear": ("llama", _rope(type="linear", factor=4.0)),
    "rope dynamic": ("llama", _rope(type="dynamic", factor=4.0)),
    "rope yarn": ("llama", _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "empty auto_map": ("llama", lambda model: model.edit(auto_map={})),
    "another file beside": ("llama", lambda model: model.save(model.weights, "consolidated.safetensors")),
}


@pytest.mark.parametrize("case", GOOD)
def test_load_a_folder_that_is_right_gives_the_number_of_transformers(
    case: str, folder: Callable[[str], Folder]
) -> None:
    family, change = GOOD[case]
    model = folder(family)
    change(model)
    assert nats(model.path) == pytest.approx(plain_nats(model.path), rel=1e-6)


# ---- invalid folders


def _bias(model: Folder) -> None:
    model.add(**{f"{BLOCK}.q_proj.bias": torch.randn(32)})


def _scales(model: Folder) -> None:
    weights = model.weights
    name = f"{BLOCK}.q_proj.weight"
    scale = weights[name].abs().max() / 448
    weights[name], weights[f"{name}_scale_inv"] = (weights[name] / scale).to(torch.float8_e4m3fn), scale.reshape(1, 1)
    model.save(weights)


def _cast(dtype: torch.dtype) -> Callable[[Folder], None]:
    return lambda model: model.add(**{f"{BLOCK}.q_proj.weight": model.weights[f"{BLOCK}.q_proj.weight"].to(dtype)})


def _renamed(prefix: str) -> Callable[[Folder], None]:
    return lambda model: model.save({prefix + name: tensor for name, tensor in model.weights.items()})


def _tied_but_different(model: Folder) -> None:
    model.edit(tie_word_embeddings=True)
    assert not torch.equal(*(model.weights[name] for name in ("lm_head.weight", "model.embed_tokens.weight")))


def _shard_missing(model: Folder) -> None:
    (model.path / model.shard()[1]).unlink()


def _shard_named_otherwise(model: Folder) -> None:
    model.index(**{"model.norm.weight": "model-00009-of-00009.safetensors"})


def _sharded(change: Callable[[Folder], Any]) -> Callable[[Folder], None]:
    def both(model: Folder) -> None:
        model.shard()
        change(model)

    return both


def _both(model: Folder) -> None:
    weights = model.weights
    model.shard()
    model.save({name: tensor * 0.5 for name, tensor in weights.items()})


def _twice_in_shards(model: Folder) -> None:
    first = model.shard()[0]
    model.save(load_file(model.path / first) | {"model.norm.weight": torch.zeros(32)}, first)


def _old_shard(model: Folder) -> None:
    model.save({"model.norm.weight": torch.zeros(32)}, "model-00001-of-00002.safetensors")


def _two_for_one(model: Folder) -> None:
    model.add(**{"norm.weight": torch.zeros(32)})


def _nan(value: float) -> Callable[[Folder], None]:
    def spoil(model: Folder) -> None:
        weights = model.weights
        weights["model.layers.2.mlp.up_proj.weight"][3, 5] = value
        model.save(weights)

    return spoil


def _write(file: str, content: bytes) -> Callable[[Folder], Any]:
    return lambda model: (model.path / file).write_bytes(content)


def _no_tokenizer(model: Folder) -> None:
    for path in model.path.glob("tokenizer*"):
        path.unlink()


def _adapter_beside(model: Folder) -> None:
    (model.path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))


def _adapter_alone(model: Folder) -> None:
    _adapter_beside(model)
    for name in (WEIGHTS, "config.json"):
        (model.path / name).unlink()


def _code(file: str, **map_: Any) -> Callable[[Folder], None]:
    def write(model: Folder) -> None:
        model.edit(file, auto_map=map_)
        for name in ("modeling_own", "configuration_own", "tokenization_own"):
            (model.path / f"{name}.py").write_text("raise SystemExit('code of the model folder was run')\n")

    return write


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456\n"
QUANTISED = ("bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8", "mxfp4", "hqq", "no-such-method")

BAD: dict[str, tuple[str, Callable[[Folder], Any], tuple[str, ...]]] = {
    "bias forgotten": ("llama", _bias, (f"{BLOCK}.q_proj.bias", "does not take", "config.json")),
    "norm forgotten": (
        "llama",
        lambda m: m.add(**{f"{BLOCK}.q_norm.weight": torch.ones(8)}),
        ("q_norm.weight", "not take"),
    ),
    "a bias where a mask may be": ("gpt2", lambda m: m.add(**{"h.1.attn.bias": torch.ones(32)}), ("h.1.attn.bias",)),
    "a mask of another attention": (
        "gpt2",
        lambda m: m.add(**{"h.1.attn.bias": torch.ones(128, 128).tril().triu(-8)[None, None]}),
        ("h.1.attn.bias", "not take"),
    ),
    "positions that are none": (
        "llama",
        lambda m: m.add(**{"model.position_ids": torch.tensor([0.5, 1.5])}),
        ("position_ids", "not take"),
    ),
    "frequencies of another model": (
        "llama",
        lambda m: m.add(**{f"{BLOCK}.rotary_emb.inv_freq": 500_000 ** -(torch.arange(0, 8, 2) / 8)}),
        ("inv_freq",),
    ),
    "another head": ("llama", lambda m: m.add(**{"score.weight": torch.ones(2, 32)}), ("score.weight", "not take")),
    "scales": ("llama", _scales, ("q_proj.weight_scale_inv", "dequantised")),
    "fp8 alone": ("llama", _cast(torch.float8_e4m3fn), ("q_proj.weight", "F8_E4M3", "dequantised")),
    "integers": ("llama", _cast(torch.int8), ("q_proj.weight", "I8", "dequantised")),
    "lora": (
        "llama",
        lambda m: m.add(**{f"{BLOCK}.q_proj.lora_A.default.weight": torch.ones(2, 32)}),
        ("lora_A", "--adapter"),
    ),
    "compiled": ("llama", _renamed("_orig_mod."), ("_orig_mod.", "compiled")),
    "parallel": ("llama", _renamed("module."), ("module.", "parallel")),
    "two for one": ("llama", _two_for_one, ("model.norm.weight", "norm.weight", "one parameter")),
    "tied but different": ("llama", _tied_but_different, ("lm_head.weight", "embed_tokens", "tie_word_embeddings")),
    "untied without a head": ("gpt2", lambda m: m.edit(tie_word_embeddings=False), ("lm_head.weight", "missing")),
    "nan": ("llama", _nan(float("nan")), ("model.layers.2.mlp.up_proj.weight", "NaN")),
    "infinity": ("llama", _nan(float("inf")), ("model.layers.2.mlp.up_proj.weight", "infinite")),
    "shard missing": ("llama", _shard_missing, ("model-00002-of-00003.safetensors", "not there")),
    "index names another file": ("llama", _sharded(_shard_named_otherwise), ("model-00009-of-00009", "not there")),
    "index names too little": ("llama", _sharded(lambda m: m.index(**{"model.norm.weight": None})), ("describe",)),
    "index is empty": ("llama", _sharded(lambda m: m.edit(INDEX, weight_map={})), (INDEX, "weight_map")),
    "index is damaged": ("llama", _sharded(_write(INDEX, b"{")), (INDEX, "JSON")),
    "one file and shards": ("llama", _both, (WEIGHTS, INDEX, "both")),
    "a name in two shards": ("llama", _twice_in_shards, ("model.norm.weight", "two")),
    "a shard of an earlier save": ("llama", _old_shard, ("model-00001-of-00002.safetensors", "not be read")),
    "weights are a pointer": ("llama", _write(WEIGHTS, POINTER), ("git lfs pull", WEIGHTS)),
    "tokenizer of gpt2 is missing": ("gpt2", _no_tokenizer, ("no tokenizer in", "tokenizer.json")),
    "tokenizer of qwen2 is missing": ("qwen2", _no_tokenizer, ("no tokenizer in", "tokenizer.json")),
    "tokenizer of gpt_neox is missing": ("gpt_neox", _no_tokenizer, ("no tokenizer in", "tokenizer.json")),
    "tokenizer of llama is missing": ("llama", _no_tokenizer, ("no tokenizer in", "tokenizer.json")),
    "adapter beside": ("llama", _adapter_beside, ("adapter_config.json", "--adapter")),
    "adapter alone": ("llama", _adapter_alone, ("adapter_config.json", '"x/y"', "--model", "--adapter")),
    "adapter weights beside": ("llama", lambda m: m.save({}, "adapter_model.safetensors"), ("--adapter",)),
    "code of its own": ("llama", _code("config.json", AutoConfig="configuration_own.Own"), ("never run", "auto_map")),
    "code of a known family": (
        "llama",
        _code("config.json", AutoModelForCausalLM="modeling_own.LlamaForCausalLM"),
        ("never run", "modeling_own"),
    ),
    "code of the tokenizer": (
        "llama",
        _code("tokenizer_config.json", AutoTokenizer=["tokenization_own.Own", None]),
        ("never run", "tokenizer_config.json"),
    ),
    **{
        f"quantised by {method}": (
            "llama",
            lambda m, method=method: m.edit(quantization_config={"quant_method": method, "bits": 4}),
            ("quantised", method, "not supported"),
        )
        for method in QUANTISED
    },
    "quantised by nothing": ("llama", lambda m: m.edit(quantization_config={}), ("quantised",)),
}


@pytest.mark.parametrize("case", BAD)
def test_load_a_folder_of_another_model_is_refused_in_one_sentence(
    case: str, folder: Callable[[str], Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, change, words = BAD[case]
    model = folder(family)
    change(model)
    # no prompt is allowed: an answer on stdin could let code of the folder run
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    refused(model.path, *words)


BROKEN_VALUES: dict[str, dict[str, Any]] = {
    "hidden_size is a word": {"hidden_size": "abc"},
    "hidden_size is 0": {"hidden_size": 0},
    "hidden_size is a fraction": {"hidden_size": 32.5},
    "hidden_size is a list": {"hidden_size": [32]},
    "no heads": {"num_attention_heads": 0},
    "heads do not divide": {"num_attention_heads": 7},
    "heads are a word": {"num_attention_heads": "four"},
    "no kv heads": {"num_key_value_heads": 0},
    "kv heads do not divide": {"num_key_value_heads": 3},
    "negative layers": {"num_hidden_layers": -1},
    "no layers": {"num_hidden_layers": 0},
    "a billion layers": {"num_hidden_layers": 10**9},
    "layers are a word": {"num_hidden_layers": "4"},
    "layers are true": {"num_hidden_layers": True},
    "no model_type": {"model_type": None},
    "model_type is a number": {"model_type": 3},
    "vocabulary is smaller": {"vocab_size": 200},
    "vocabulary is enormous": {"vocab_size": 10**12},
    "vocabulary is negative": {"vocab_size": -5},
    "rope_scaling is a word": {"rope_parameters": None, "rope_scaling": "abc"},
    "rope_scaling is of no kind": {"rope_parameters": None, "rope_scaling": {"type": "no-such-kind", "factor": 2.0}},
    "rope_parameters is a list": {"rope_parameters": [1, 2]},
    "an unknown activation": {"hidden_act": "no-such-activation"},
    "an activation that is a number": {"hidden_act": 7},
    "width of a head": {"head_dim": "x"},
    "positions are a word": {"max_position_embeddings": "many"},
    "an epsilon that is a word": {"rms_norm_eps": "small"},
    "transformers_weights": {"transformers_weights": "other.safetensors"},
}
BROKEN_TEXTS = {
    "cut": b'{"model_type": "llama", "hidden_size": 3',
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a string": b'"llama"',
    "not UTF-8": b"\xff\xfe{}\x80",
    "nested without end": b"[" * 100_000,
    "a pointer": POINTER,
}


@pytest.mark.parametrize("case", BROKEN_VALUES)
def test_load_a_config_with_a_broken_value_is_refused_in_one_sentence(
    case: str, folder: Callable[[str], Folder]
) -> None:
    model = folder("llama")
    model.edit(**BROKEN_VALUES[case])
    refused(model.path)


@pytest.mark.parametrize("case", BROKEN_TEXTS)
def test_load_a_config_that_is_no_json_object_is_refused_in_one_sentence(
    case: str, folder: Callable[[str], Folder]
) -> None:
    model = folder("llama")
    (model.path / "config.json").write_bytes(BROKEN_TEXTS[case])
    refused(model.path, "config.json")
    with pytest.raises(CheckpointError):
        load_config(model.path)


@pytest.mark.parametrize("values", [{"dtype": "no-such-type"}, {"torch_dtype": "bogus"}, {"dtype": 7}])
def test_load_an_unknown_dtype_gives_the_number_or_a_sentence(
    values: dict[str, Any], folder: Callable[[str], Folder]
) -> None:
    """Check that the command's dtype takes precedence over that of the configuration."""
    model = folder("llama")
    expected = plain_nats(model.path)
    model.edit(**values)
    with suppress(CheckpointError):
        assert nats(model.path) == pytest.approx(expected, rel=1e-6)


# ---- the command


def run(model: Path, tmp_path: Path) -> Any:
    (tmp_path / "book.txt").write_text(TEXT)
    job = ["perplexity", str(tmp_path / "book.txt"), "--model", str(model), "--address", "none", "--threads", "1"]
    return CliRunner().invoke(app, [*job, "--segment-tokens", str(SEGMENT), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("case", ["bias forgotten", "quantised by gptq", "code of its own", "adapter beside"])
def test_perplexity_of_a_folder_of_another_model_exits_2(
    case: str, folder: Callable[[str], Folder], tmp_path: Path
) -> None:
    family, change, words = BAD[case]
    model = folder(family)
    change(model)
    result = run(model.path, tmp_path)
    assert result.exit_code == 2
    assert result.output.count("error:") == 1
    assert all(word in result.output for word in words)


def test_sequence_of_a_special_token_beyond_the_embedding_raises(folder: Callable[[str], Folder]) -> None:
    model = folder("llama")
    _pad_token_beyond(model)
    tokenizer = Tokenizer(model.path, 257)
    assert len(tokenizer.sequence(TEXT)) == len(TEXT) + 1
    for read in (tokenizer.sequence, tokenizer.encode):
        with pytest.raises(DocumentError, match=r"\[PAD\].*257"):
            read("before [PAD] after")


def test_sequence_of_a_tokenizer_that_cuts_is_whole(folder: Callable[[str], Folder]) -> None:
    model = folder("llama")
    _tokenizer_that_cuts(model)
    tokenizer = Tokenizer(model.path, 257)
    assert len(tokenizer.sequence(TEXT)) == len(TEXT) + 1
    assert len(tokenizer.encode("ab")) == 2


def test_digest_of_weights_is_of_the_values_alone(folder: Callable[[str], Folder], tmp_path: Path) -> None:
    model = folder("llama")
    before = Backbone.load(model.path).digest()
    model.shard()
    assert Backbone.load(model.path).digest() == before


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc, which tells what files are mapped")
def test_a_file_of_which_most_is_converted_does_not_stay_in_memory(folder: Callable[[str], Folder]) -> None:
    """Check a file in float32 whose norms are bfloat16, as `longmem.backbone.converted` writes them."""
    model = folder("llama")
    model.save({name: part.bfloat16() if part.ndim == 1 else part.float() for name, part in model.weights.items()})
    rounded = Backbone.load(model.path, "bfloat16")
    assert str(model.path) not in MAPS.read_text()
    stored = model.weights
    for name, parameter in rounded.model.named_parameters():
        assert torch.equal(parameter, stored[name].bfloat16()), name
    # of the requested type: its pages are shared by all processes
    whole = Backbone.load(model.path, "float32")
    assert str(model.path) in MAPS.read_text()
    assert torch.equal(whole.model.get_output_embeddings().weight, stored["lm_head.weight"])


def test_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers itself reports it as a file that does not exist."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match="cannot reach the Hugging Face hub, and nobody/a-model is not in its cache"
    ):
        load_config("nobody/a-model")
