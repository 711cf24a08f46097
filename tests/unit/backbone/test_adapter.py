# SPDX-License-Identifier: Apache-2.0
"""Adapters give the numbers of peft and transformers, or are refused; no part is ignored."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from longmem.backbone.backbone import Backbone
from longmem.backbone.loading import hash_weights
from longmem.backbone.tokenizer import Tokenizer
from longmem.errors import CheckpointError, ConfigError, FingerprintError, LongMemError
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.store.config import MemoryStore
from longmem.testing import save_small_backbone, unsettle
from pipelines.cli import app
from pipelines.command.options import BackboneOptions

pytestmark = [
    # warnings of peft itself, which these tests call directly
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

TEXT = "The mill stood by the river, and the river by the mill. " * 2
SETTINGS: dict[str, Any] = {"segment_tokens": 32, "memory_tokens": 96, "top_k": 16}
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "gpt_neox": ["query_key_value"]}

KINDS: dict[str, Callable[[list[str]], peft.PeftConfig]] = {
    "lora": lambda targets: peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets),
    "dora": lambda targets: peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, use_dora=True),
    "rank-stabilised": lambda targets: peft.LoraConfig(r=4, target_modules=targets, use_rslora=True),
    "ia3": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=[]),
    "loha": lambda targets: peft.LoHaConfig(r=2, target_modules=targets),
    "a head of its own": lambda targets: peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["lm_head"]),
}


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def make(base: Path, folder: Path, config: peft.PeftConfig, seed: int = 1) -> Path:
    """Save an adapter of a base with non-zero weights everywhere."""
    config.task_type = "CAUSAL_LM"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(plain(base), config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def logprobs(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
    return logits[:-1].gather(1, tokens[1:, None])[:, 0]


def found(backbone: Backbone, tokens: Tensor) -> Tensor:
    return backbone.target_logprobs(backbone.forward(tokens[None], 1, 2).hidden[0], tokens[1:])


TOKENS = torch.randint(256, (48,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def llama(small_backbone: Callable[[str], Path]) -> Path:
    return small_backbone("llama")


@pytest.fixture(scope="module")
def lora(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(llama, tmp_path_factory.mktemp("adapters") / "lora", KINDS["lora"](TARGETS["llama"]))


@pytest.fixture
def copied(lora: Path, tmp_path: Path) -> Path:
    """Return a private copy that a test may damage."""
    return Path(shutil.copytree(lora, tmp_path / "lora"))


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    held = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(held), path, {"format": "pt"})


def refused(base: Path, adapter: Path, *words: str, kind: type[LongMemError] = CheckpointError) -> None:
    with pytest.raises(kind) as caught:
        Backbone.load(base, adapter=adapter)
    for word in (str(adapter), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the right numbers


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merge_an_adapter_gives_the_numbers_of_peft(
    kind: str, family: str, small_backbone: Callable[[str], Path], tmp_path: Path
) -> None:
    base = small_backbone(family)
    adapter = make(base, tmp_path / "adapter", KINDS[kind](TARGETS[family]))
    wanted = logprobs(peft.PeftModel.from_pretrained(plain(base), str(adapter)).eval(), TOKENS)
    torch.testing.assert_close(found(Backbone.load(base, adapter=adapter), TOKENS).double(), wanted, rtol=0, atol=2e-4)
    assert (wanted - logprobs(plain(base), TOKENS)).abs().max() > 0.1, "the adapter must matter"


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"lora", "dora"}))
def test_merge_each_kind_gives_the_numbers_of_peft(kind: str, llama: Path, tmp_path: Path) -> None:
    adapter = make(llama, tmp_path / "adapter", KINDS[kind](TARGETS["llama"]))
    wanted = logprobs(peft.PeftModel.from_pretrained(plain(llama), str(adapter)).eval(), TOKENS)
    torch.testing.assert_close(found(Backbone.load(llama, adapter=adapter), TOKENS).double(), wanted, rtol=0, atol=2e-4)
    assert (wanted - logprobs(plain(llama), TOKENS)).abs().max() > 0.1, "the adapter must matter"


def test_merge_an_adapter_of_the_model_s_own_folder_merges_it_once(llama: Path, lora: Path, tmp_path: Path) -> None:
    """Prevent a double merge: transformers would add an adapter next to the weights by itself, where peft is
    installed."""
    both = Path(shutil.copytree(llama, tmp_path / "both"))
    shutil.copytree(lora, both, dirs_exist_ok=True)
    assert Backbone.load(both, adapter=both).digest() == Backbone.load(llama, adapter=lora).digest()


def test_merge_is_rounded_once_in_bfloat16(llama: Path, lora: Path) -> None:
    rounded = Backbone.load(llama, "bfloat16", adapter=lora)
    assert rounded.dtype == torch.bfloat16
    assert rounded.digest() == hash_weights(Backbone.load(llama, adapter=lora).model, rounded_to=torch.bfloat16)


def test_merge_does_not_depend_on_the_number_of_threads(llama: Path, lora: Path) -> None:
    before, digests = torch.get_num_threads(), set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            digests.add(Backbone.load(llama, adapter=lora).digest())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


# ---- a memory of the base is not one of the adapted model


def test_fingerprint_is_of_the_merged_weights(llama: Path, lora: Path, tmp_path: Path) -> None:
    other = make(llama, tmp_path / "other", KINDS["lora"](TARGETS["llama"]), seed=2)
    models = [LongMem.from_backbone(llama, adapter=adapter, **SETTINGS) for adapter in (None, lora, other)]
    assert len({model.fingerprint.backbone for model in models}) == 3
    assert [model.backbone.name for model in models] == ["llama-0", "llama-0+lora", "llama-0+other"]
    with MemoryStore.open("memory://") as store:
        models[0].score(TEXT, store.document("book"))
        with pytest.raises(FingerprintError):
            models[1].score(TEXT, store.document("book"))


def test_save_a_merged_model_keeps_the_merged_weights(llama: Path, lora: Path, tmp_path: Path) -> None:
    model = unsettle(LongMem.from_backbone(llama, adapter=lora, **SETTINGS))
    model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("adapter*"))
    loaded = LongMem.from_pretrained(tmp_path / "saved")
    assert loaded.fingerprint == model.fingerprint
    assert np.array_equal(loaded.score(TEXT).logprobs, model.score(TEXT).logprobs)


# ---- unsupported adapters


def test_merge_into_another_base_is_refused(lora: Path, small_backbone: Callable[[str], Path], tmp_path: Path) -> None:
    refused(small_backbone("gpt2"), lora, "trained on this very model")
    save_small_backbone(tmp_path / "wide", "llama", hidden_size=64)
    refused(tmp_path / "wide", lora, "trained on this very model")
    save_small_backbone(tmp_path / "deep", "llama", num_hidden_layers=6)
    refused(tmp_path / "deep", lora, "incomplete", "layers.4")
    save_small_backbone(tmp_path / "flat", "llama", num_hidden_layers=2)
    refused(tmp_path / "flat", lora, "does not take", "layers.2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: dict(sorted(held.items())[1:]), ("incomplete", "lora_A")),
        (lambda held: held | {"base_model.model.model.layers.0.mlp.extra.lora_A.weight": torch.ones(2, 2)}, ("extra",)),
        (lambda held: held | {"unknown": torch.ones(1)}, ("unknown", "not take")),
        (lambda held: {f"x.{name}": each for name, each in held.items()}, ("incomplete",)),
        (lambda held: {name: each * float("nan") for name, each in held.items()}, ("NaN",)),
    ],
)
def test_merge_weights_that_are_not_the_adapter_s_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: tuple[str, ...], copied: Path, llama: Path
) -> None:
    rewrite(copied, change)
    with pytest.raises(CheckpointError) as caught:
        Backbone.load(llama, adapter=copied)
    assert str(copied) in str(caught.value)
    assert any(word.lower() in str(caught.value).lower() for word in words)


def test_merge_of_a_folder_that_holds_no_adapter_is_refused(copied: Path, llama: Path, tmp_path: Path) -> None:
    refused(llama, tmp_path / "nowhere", "not found")
    refused(llama, llama, "adapter_config.json")
    edit(copied, no_such_setting=True)
    refused(llama, copied, "no_such_setting", "--upgrade peft")
    edit(copied, no_such_setting=None, peft_type="NO_SUCH_KIND")
    refused(llama, copied)
    (copied / "adapter_config.json").write_text("{")
    refused(llama, copied, "JSON")


def test_merge_of_pickled_or_damaged_weights_is_refused(copied: Path, llama: Path) -> None:
    path = copied / "adapter_model.safetensors"
    data = path.read_bytes()
    # copied, because the file that they are mapped from is truncated next
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(data[: len(data) // 2])
    refused(llama, copied, "damaged")
    path.unlink()
    torch.save(weights, copied / "adapter_model.bin")
    refused(llama, copied, "safetensors", "never read")


def test_merge_of_a_prompt_is_refused(llama: Path, tmp_path: Path) -> None:
    make(llama, tmp_path / "prompt", peft.PromptTuningConfig(num_virtual_tokens=4))
    refused(llama, tmp_path / "prompt", "PROMPT_TUNING", "cannot be merged")


def test_merge_into_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    """Refuse a merge that would also change the head, which the unmerged adapter does not."""
    save_small_backbone(tmp_path / "tied", "llama", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="tie"):
        make(tmp_path / "tied", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    refused(tmp_path / "tied", tmp_path / "adapter", "cannot be merged")


def test_merge_without_peft_says_how_to_install_it(lora: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'longmem\[adapter\]'"):
        Backbone.load(llama, adapter=lora)


def test_a_longmem_folder_takes_no_adapter(llama: Path, lora: Path, tmp_path: Path) -> None:
    LongMem.from_backbone(llama, **SETTINGS).save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"--model .*backbone with --adapter"):
        ModelSource(str(tmp_path / "saved"), adapter=str(lora)).open()
    shutil.copy(lora / "adapter_config.json", tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        LongMem.from_pretrained(tmp_path / "saved")


def test_an_adapter_without_a_model_is_refused(lora: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        BackboneOptions(adapter=lora).adapter_folder(None)
    assert BackboneOptions().adapter_folder(None) is None


# ---- the commands


def test_perplexity_with_an_adapter_is_that_of_the_merged_model(llama: Path, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT)
    start = Backbone.load(llama, adapter=lora)
    tokens = torch.from_numpy(Tokenizer(llama, 257).sequence(TEXT)).long()
    parts = [tokens[first : first + 33] for first in range(0, len(tokens) - 1, 32)]
    nats = -sum(float(found(start, part).double().sum()) for part in parts)
    job = ["perplexity", str(tmp_path / "book.txt"), "--model", str(llama), "--address", "none", "--threads", "1"]
    job += ["--segment-tokens", "32", "--memory-tokens", "64", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*job, "--adapter", str(lora)])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["model"]["name"] == "llama-0+lora"
    assert summary["perplexity"]["token"]["backbone"]["value"] == pytest.approx(np.exp(nats / len(TEXT)), rel=1e-5)
    # the job equals that of the adapted model
    resumed = CliRunner().invoke(app, [*job, "--resume"])
    assert resumed.exit_code == 2
    assert "another job" in resumed.output


@pytest.mark.parametrize("command", ["perplexity", "icl", "suffix", "probe", "fit", "train", "plan", "doctor"])
def test_every_command_with_a_model_takes_an_adapter(command: str) -> None:
    import typer.main

    options = {name for each in typer.main.get_command(app).commands[command].params for name in each.opts}  # type: ignore[attr-defined]
    assert "--adapter" in options
    service = typer.main.get_command(app).commands["service"].commands["up"]  # type: ignore[attr-defined]
    assert "--adapter" in {name for each in service.params for name in each.opts}
