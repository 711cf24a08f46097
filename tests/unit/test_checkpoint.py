# SPDX-License-Identifier: Apache-2.0
"""A LongMem on disk: equal numbers after saving and loading, an error for every deviation from the saved files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from longmem.backbone.backbone import Backbone
from longmem.backbone.families import FAMILIES
from longmem.backbone.tokenizer import Tokenizer
from longmem.config import LongMemConfig
from longmem.errors import CheckpointError, ConfigError, LongMemError
from longmem.model.folders import is_checkpoint
from longmem.model.longmem import LongMem
from longmem.sidenet.sidenet import SideNet
from longmem.testing import save_small_backbone, unsettle
from tests.inputs import FORMS

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom"  # three segments of 32
SIDENET = "sidenet.safetensors"


def trained(model: LongMem, seed: int = 3) -> LongMem:
    """Move every weight of the SideNet, like training."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.sidenet.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random).to(parameter.dtype)
    return model


def same_scores(one: LongMem, other: LongMem) -> bool:
    first, second = one.score(TEXT), other.score(TEXT)
    assert np.isfinite(first.logprobs).all()
    assert not np.array_equal(first.logprobs, first.backbone_logprobs), "the SideNet must matter"
    return np.array_equal(first.logprobs, second.logprobs) and np.array_equal(
        first.backbone_logprobs, second.backbone_logprobs
    )


@pytest.fixture(scope="module")
def original(small_model: Callable[..., LongMem]) -> LongMem:
    return trained(small_model("llama", memory_layer=1, kv_dtype="float32", trained_steps=7))


@pytest.fixture(scope="module")
def intact(original: LongMem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    original.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(intact: Path, tmp_path: Path) -> Path:
    """Return a private copy that a test may damage."""
    return Path(shutil.copytree(intact, tmp_path / "model"))


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Set fields of config.json; None removes one."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in values.items() if value is not None})
    )


def refused(folder: Path, *words: str, kind: type[LongMemError] = CheckpointError) -> None:
    with pytest.raises(kind) as caught:
        LongMem.from_pretrained(folder)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("form", FORMS)
def test_scores_of_every_family_survive_to_the_bit(
    family: str, form: str, small_model: Callable[..., LongMem], tmp_path: Path
) -> None:
    model = trained(small_model(family, **FORMS[form]))
    model.save_pretrained(tmp_path / "model")
    loaded = LongMem.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    assert same_scores(model, loaded)


def test_settings_survive_and_can_be_replaced(original: LongMem, intact: Path) -> None:
    loaded = LongMem.from_pretrained(intact)
    assert loaded.config == original.config
    assert loaded.sidenet.memory_layer == 1
    assert loaded.trained
    assert loaded.backbone.name == original.backbone.name
    other = LongMem.from_pretrained(intact, top_k=4, memory_tokens=32)
    assert (other.config.top_k, other.config.memory_tokens, other.config.memory_layer) == (4, 32, 1)
    assert other.fingerprint == original.fingerprint
    with pytest.raises(ConfigError, match="top_k"):
        LongMem.from_pretrained(intact, top_k=5)
    with pytest.raises(ConfigError, match="topk"):
        LongMem.from_pretrained(intact, topk=4)


def test_a_checkpoint_that_reads_other_layers_names_its_backbone(intact: Path) -> None:
    from longmem.model.source import ModelSource

    for ask in (
        lambda: LongMem.from_pretrained(intact, memory_layers="all"),
        ModelSource(str(intact), settings={"memory_layers": "all"}).config,
    ):
        with pytest.raises(ConfigError, match=r"memory_layers=one, got all; .* as the model: .*backbone"):
            ask()


def test_bfloat16_survives_to_the_bit(small_backbone: Callable[[str], Path], tmp_path: Path) -> None:
    settings = {"segment_tokens": 32, "memory_tokens": 96, "top_k": 16}
    model = trained(unsettle(LongMem.from_backbone(small_backbone("llama"), dtype="bfloat16", **settings)))
    model.save_pretrained(tmp_path / "model")
    assert same_scores(model, LongMem.from_pretrained(tmp_path / "model", dtype="bfloat16"))
    in_float32 = LongMem.from_pretrained(tmp_path / "model")
    assert in_float32.backbone.dtype == torch.float32


def test_checkpoint_folder_is_self_contained_and_can_be_saved_again(
    original: LongMem, saved: Path, tmp_path: Path
) -> None:
    loaded = LongMem.from_pretrained(saved)
    loaded.save_pretrained(saved)  # over itself
    loaded.save_pretrained(tmp_path / "second")
    shutil.rmtree(saved)
    assert same_scores(original, LongMem.from_pretrained(tmp_path / "second"))


def test_saving_again_after_training_keeps_the_later_weights(saved: Path) -> None:
    model = trained(LongMem.from_pretrained(saved), seed=8)
    model.save_pretrained(saved)
    assert same_scores(model, LongMem.from_pretrained(saved))


def test_nothing_is_pickled(intact: Path) -> None:
    suffixes = {path.suffix for path in intact.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".model"}


@pytest.mark.parametrize("remembers_a_folder", [False, True])
def test_a_backbone_that_was_never_on_disk_is_saved_too(
    remembers_a_folder: bool, tmp_path: Path, small_backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that its own weights are used, not files of the working directory or of the configuration's folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("private")
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = small_backbone("llama")
    hf_config = AutoConfig.from_pretrained(str(source))
    if not remembers_a_folder:
        hf_config.name_or_path = ""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        causal_lm = AutoModelForCausalLM.from_config(hf_config)
    assert bool(causal_lm.name_or_path) == remembers_a_folder
    backbone = Backbone(causal_lm.eval().requires_grad_(False), "made-here")
    config = LongMemConfig(segment_tokens=32, top_k=16)
    model = unsettle(LongMem(backbone, SideNet(backbone, config), Tokenizer(source, backbone.vocab_size), config))
    model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "backbone" / "notes.txt").exists(), "files of the working directory were copied"
    assert same_scores(model, LongMem.from_pretrained(tmp_path / "model"))


def test_is_checkpoint(intact: Path, tmp_path: Path, small_backbone: Callable[[str], Path]) -> None:
    assert is_checkpoint(intact)
    assert not is_checkpoint(small_backbone("llama"))
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "nowhere")


# ---- with and without repeats


COPYING: dict[str, Any] = {**FORMS["default"], "kv_dtype": "float32"}


def saved_with(repeats: int, folder: Path, small_model: Callable[..., LongMem]) -> LongMem:
    model = trained(small_model("llama", **COPYING, copy_repeats=repeats))
    model.save_pretrained(folder)
    return model


def repeat_weights(model: LongMem) -> set[str]:
    return {name for name in model.sidenet.state_dict() if name.startswith("copy_head.repeats.")}


def test_repeats_start_untrained_in_a_model_that_was_saved_without(
    small_model: Callable[..., LongMem], tmp_path: Path
) -> None:
    model = saved_with(0, tmp_path, small_model)
    loaded = LongMem.from_pretrained(tmp_path, copy_repeats=8)
    assert loaded.config == loaded.sidenet.config == replace(model.config, copy_repeats=8)
    before, after = model.sidenet.state_dict(), loaded.sidenet.state_dict()
    assert after.keys() - before.keys() == repeat_weights(loaded) != set()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    start = small_model("llama", **COPYING, copy_repeats=8).sidenet.state_dict()
    assert all(torch.equal(after[name], start[name]) for name in repeat_weights(loaded))
    assert not same_scores(model, loaded), "repeats must matter"
    # with them it is a whole model, which can be saved
    loaded.save_pretrained(tmp_path)
    assert same_scores(loaded, LongMem.from_pretrained(tmp_path))


def test_repeats_are_left_out_of_a_model_that_was_saved_with_them(
    small_model: Callable[..., LongMem], tmp_path: Path
) -> None:
    model = saved_with(8, tmp_path, small_model)
    assert repeat_weights(model)
    loaded = LongMem.from_pretrained(tmp_path, copy_repeats=0)
    assert loaded.config == loaded.sidenet.config == replace(model.config, copy_repeats=0)
    before, after = model.sidenet.state_dict(), loaded.sidenet.state_dict()
    assert before.keys() - after.keys() == repeat_weights(model)
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


def test_fewer_repeats_have_the_same_weights(small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    model = saved_with(8, tmp_path, small_model)
    before, after = (each.sidenet.state_dict() for each in (model, LongMem.from_pretrained(tmp_path, copy_repeats=2)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


def test_a_model_of_before_there_were_repeats_has_none(small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    model = saved_with(0, tmp_path, small_model)
    settings = json.loads((tmp_path / "config.json").read_text())["longmem"]
    del settings["copy_repeats"]
    rewrite_config(tmp_path, longmem=settings)
    loaded = LongMem.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.config.copy_repeats == 0
    assert same_scores(model, loaded)
    assert repeat_weights(LongMem.from_pretrained(tmp_path, copy_repeats=8))


def test_a_damaged_model_is_refused_with_repeats_too(small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    saved_with(0, tmp_path, small_model)
    data = bytearray((tmp_path / SIDENET).read_bytes())
    data[-1000] ^= 1
    (tmp_path / SIDENET).write_bytes(data)
    with pytest.raises(CheckpointError, match="digest"):
        LongMem.from_pretrained(tmp_path, copy_repeats=8)


# ---- never over another model


def test_a_backbone_s_folder_is_not_overwritten(
    original: LongMem, tmp_path: Path, small_backbone: Callable[[str], Path]
) -> None:
    folder = Path(shutil.copytree(small_backbone("gpt2"), tmp_path / "gpt2"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="another model") as caught:
        original.save_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_whose_configuration_is_damaged_is_not_overwritten(original: LongMem, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        original.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


# ---- damage


@pytest.mark.parametrize("file", [SIDENET, "backbone/model.safetensors"])
@pytest.mark.parametrize("damage", ["half", "empty", "header"])
def test_damaged_files(file: str, damage: str, saved: Path) -> None:
    data = (saved / file).read_bytes()
    (saved / file).write_bytes(
        {"half": data[: len(data) // 2], "empty": b"", "header": b"\xff" * 64 + data[64:]}[damage]
    )
    refused(saved, str((saved / file).parent), "safetensors")


@pytest.mark.parametrize("file", [SIDENET, "backbone/model.safetensors"])
def test_one_flipped_bit(file: str, saved: Path) -> None:
    data = bytearray((saved / file).read_bytes())
    data[-1000] ^= 1
    (saved / file).write_bytes(data)
    refused(saved, str(saved / Path(file).parts[0]), "digest")


def test_missing_files(saved: Path) -> None:
    (saved / SIDENET).unlink()
    refused(saved, str(saved / SIDENET))
    shutil.rmtree(saved / "backbone")
    refused(saved, str(saved / "backbone"))
    refused(saved / "nowhere", str(saved / "nowhere"))
    refused(Path("no-such-owner/no-such-model"), "no-such-owner/no-such-model")


def test_missing_tokenizer(saved: Path) -> None:
    for path in (saved / "backbone").glob("tokenizer*"):
        path.unlink()
    refused(saved, "tokenizer", str(saved / "backbone"))


def test_another_tokenizer(saved: Path) -> None:
    """Check a tokenizer of equal size: every id fits, and every number would be wrong."""
    path = saved / "backbone" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(values))
    refused(saved, str(path), "digest")


def test_another_backbone_of_the_same_shape(saved: Path) -> None:
    shutil.rmtree(saved / "backbone")
    save_small_backbone(saved / "backbone", "llama", seed=99)
    refused(saved, str(saved / "backbone"), "digest")


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_backbone_of_another_family(family: str, saved: Path) -> None:
    shutil.rmtree(saved / "backbone")
    save_small_backbone(saved / "backbone", family)
    refused(saved, str(saved))


def test_a_sidenet_of_another_model(saved: Path, small_model: Callable[..., LongMem], tmp_path: Path) -> None:
    trained(small_model("llama"), seed=4).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / SIDENET, saved / SIDENET)
    refused(saved, str(saved / SIDENET), "digest")
    small_model("gpt2").save_pretrained(tmp_path / "gpt2")
    shutil.copyfile(tmp_path / "gpt2" / SIDENET, saved / SIDENET)
    refused(saved, str(saved / SIDENET), "fit")


def test_a_sidenet_with_a_tensor_too_few_or_too_many(saved: Path) -> None:
    weights = load_file(saved / SIDENET)
    save_file({name: tensor for name, tensor in weights.items() if name != "gate"}, saved / SIDENET)
    refused(saved, str(saved / SIDENET), "gate")
    save_file({**weights, "extra": torch.zeros(1)}, saved / SIDENET)
    refused(saved, str(saved / SIDENET), "extra")


# ---- config.json


def test_configuration_is_missing(saved: Path) -> None:
    (saved / "config.json").unlink()
    refused(saved, str(saved / "config.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00\x00"])
def test_configuration_is_not_a_json_object(text: str, saved: Path) -> None:
    (saved / "config.json").write_text(text)
    refused(saved, str(saved / "config.json"), "JSON")


def test_configuration_is_not_text(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe\x80")
    refused(saved, str(saved / "config.json"))


def test_a_plain_backbone_says_how_to_open_it(small_backbone: Callable[[str], Path]) -> None:
    refused(small_backbone("llama"), str(small_backbone("llama")), "from_backbone")


@pytest.mark.parametrize("name", ["longmem", "name", "dtype", "backbone_digest", "sidenet_digest", "tokenizer_digest"])
def test_configuration_without_a_part_of_it(name: str, saved: Path) -> None:
    rewrite_config(saved, **{name: None})
    refused(saved, str(saved), name)


@pytest.mark.parametrize("value", [[], "default", 3])
@pytest.mark.usefixtures("as_users_run")
def test_settings_that_are_no_object(value: object, saved: Path) -> None:
    rewrite_config(saved, longmem=value)
    refused(saved, str(saved), "longmem")


@pytest.mark.usefixtures("as_users_run")
def test_settings_that_are_unknown_or_wrong(saved: Path) -> None:
    rewrite_config(saved, longmem={"top_k": 16, "later_option": True})
    refused(saved, "later_option", "top_k", kind=ConfigError)
    rewrite_config(saved, longmem={"top_k": "16"})
    refused(saved, "top_k", kind=ConfigError)
    rewrite_config(saved, longmem={"layer_reduction": 3})
    refused(saved, "layer_reduction", kind=ConfigError)


def test_a_backbone_inside_a_saved_model_keeps_its_name(tmp_path: Path, small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama")
    model.save_pretrained(tmp_path / "saved")
    again = LongMem.from_backbone(tmp_path / "saved" / "backbone", segment_tokens=32)
    assert again.backbone.name == model.backbone.name
