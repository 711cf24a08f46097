# SPDX-License-Identifier: Apache-2.0
"""Names of models without an owner: known ones, cached ones, and misspelt ones, which cause no request."""

from pathlib import Path

import pytest
import transformers
from huggingface_hub import constants

from longmem.backbone.converted import model_folder
from longmem.backbone.model_names import FITTED_NAMES, HUB_NAMES, gguf_file
from longmem.errors import CheckpointError
from longmem.model.folders import FITTED_MODELS
from longmem.model.source import ModelSource


@pytest.mark.parametrize(
    ("name", "near"),
    [("smollm2-135n", "smollm2-135m"), ("longmem-smollm2-135", "longmem-smollm2-135m"), ("GPT2-medum", "gpt2-medium")],
)
def test_a_misspelt_name_is_told_its_nearest_without_a_request(
    name: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requested(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(transformers.utils, "cached_file", requested)
    with pytest.raises(CheckpointError, match=f"^no model {name}: did you mean {near}\\? Expected a folder"):
        ModelSource(name).config()


def test_a_name_like_no_other_is_told_what_was_expected() -> None:
    with pytest.raises(
        CheckpointError, match=r"^no model xyzzy: Expected a folder, a \.gguf file, a hub id OWNER/NAME"
    ):
        model_folder("xyzzy")


def test_names_of_the_hub_and_of_its_cache_are_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [model_folder(name) for name in HUB_NAMES] == list(HUB_NAMES)
    assert model_folder("owner/no-such-model") == "owner/no-such-model"
    cached = tmp_path / "models--xyzzy"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_folder("xyzzy") == "xyzzy"


def test_names_of_fitted_models_are_known() -> None:
    assert set(FITTED_NAMES) == set(FITTED_MODELS)
    assert [gguf_file(name) for name in FITTED_NAMES] == [None] * len(FITTED_NAMES)
