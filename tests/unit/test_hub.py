# SPDX-License-Identifier: Apache-2.0
"""Round trip of a model through a hub on this machine: uploaded with a card, and opened by its name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longmem.errors import CheckpointError
from longmem.model.hub import model_card
from longmem.model.longmem import LongMem
from tests.hub_server import LocalHub, local_hub
from tests.inputs import ALL_LAYERS

ROOT = Path(__file__).parents[2]
TEXT = "The mill stood by the river, and the river by the mill. " * 3
# another process, because huggingface_hub reads its environment once, when it is imported
ROUND_TRIP = """
import json, sys
import longmem
import longmem.errors
from longmem.model.source import ModelSource
folder, text = sys.argv[1:]
model = longmem.LongMem.from_pretrained(folder)
url = model.push_to_hub("writer/small-longmem")
model.push_to_hub("small-longmem", commit_message="once more")
opened = longmem.LongMem.from_pretrained("writer/small-longmem")
named = ModelSource("writer/small-longmem")
scores = [each.score(text).logprobs.tolist() for each in (model, opened, named.open())]
try:
    model.push_to_hub("writer/small-longmem", token="hf_stranger")
except longmem.errors.CheckpointError as error:
    refused = str(error)
print(json.dumps({"url": url, "refused": refused, "scores": scores, "segment_tokens": named.config().segment_tokens}))
"""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub() as served:
        yield served


def run(code: str, hub: LocalHub, cache: Path, token: str, *arguments: object) -> str:
    """Run code in a process whose hub is the local one, and return what it prints last."""
    hub_settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **hub_settings},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def test_a_pushed_model_is_opened_by_its_name_and_gives_the_same_numbers(
    small_model: Callable[..., LongMem], hub: LocalHub, tmp_path: Path
) -> None:
    small_model("llama", trained_steps=7).save_pretrained(tmp_path / "model")
    # a card that its owner has written, and a file of an earlier model
    hub.repositories["writer/small-longmem"] = [
        {"README.md": b"my card", "backbone/model-00001-of-00002.safetensors": b""}
    ]
    found = json.loads(run(ROUND_TRIP, hub, tmp_path / "cache", "hf_writer", tmp_path / "model", TEXT))
    one, other, named = found["scores"]
    assert one == other == named
    assert found["segment_tokens"] == 32
    assert found["url"] == f"{hub.url}/writer/small-longmem"
    assert found["refused"].startswith("cannot upload to writer/small-longmem: ")
    assert "hf auth login" in found["refused"]
    commits = hub.repositories["writer/small-longmem"]
    assert len(commits) == 3
    assert commits[-1]["README.md"] == b"my card"
    saved = {
        path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*") if path.is_file()
    }
    assert set(commits[1]) == saved | {"README.md"}
    assert commits[-1]["sidenet.safetensors"] == (tmp_path / "model" / "sidenet.safetensors").read_bytes()


def test_pushing_offline_is_an_error_of_ours(small_model: Callable[..., LongMem]) -> None:
    with pytest.raises(CheckpointError, match="cannot upload to writer/small"):
        small_model("llama").push_to_hub("writer/small")


def test_the_card_says_how_to_open_the_model_and_how_it_reads(small_model: Callable[..., LongMem]) -> None:
    sidenet = model_card(small_model("llama", trained_steps=7), "writer/small")
    assert sidenet.startswith("---\n")
    assert "library_name: longmem" in sidenet
    assert 'LongMem.from_pretrained("writer/small")' in sidenet
    assert "trained for 7 steps" in sidenet
    assert "| `segment_tokens` | 32 |" in sidenet
    assert "Every layer of it reads" in model_card(small_model("llama", **ALL_LAYERS), "writer/small")
