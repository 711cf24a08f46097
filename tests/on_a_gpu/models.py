# SPDX-License-Identifier: Apache-2.0
"""Placement of tensors on a GPU: all reading and training code keeps them on the device and gives the CPU's results.

The GPU is simulated, so only devices are tested: see `tests.on_a_gpu.pretended`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from longmem.backbone.fast import linear as fast_linear
from longmem.config import PAPER_FORM, LongMemConfig
from longmem.memory.window import WindowBuffer
from longmem.model.longmem import LongMem
from longmem.store.base import WritableDocument
from longmem.store.in_memory import InMemoryStore
from longmem.text.segments import cut_segments
from longmem.training.config import TrainingConfig
from longmem.training.trainer import Trainer
from longmem.types import DocumentKey
from tests.on_a_gpu.pretended import PretendedTensor, pretended_gpu

SEGMENT = 32
TEXT = "The old mill stood by the river, and the old man by the mill. " * 4
KEY = DocumentKey("tests", "mill")
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
"""Tolerance of float32 logarithms of sums over a few hundred numbers."""
DEFAULT_FORM = {name: getattr(LongMemConfig(), name) for name in PAPER_FORM}
"""Default form, given explicitly because small models read in the paper's form by default."""
FORMS: dict[str, dict[str, Any]] = {
    "paper": PAPER_FORM,
    "default": DEFAULT_FORM,
    "int8 per head": {**DEFAULT_FORM, "kv_dtype": "int8", "chunk_tokens": 4, "retrieval": "per_head"},
}


@pytest.fixture(params=FORMS, scope="module")
def folder(
    request: pytest.FixtureRequest, small_model: Callable[..., LongMem], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    form = {**FORMS[request.param], "segment_tokens": SEGMENT, "memory_tokens": 4 * SEGMENT}
    path = tmp_path_factory.mktemp("model") / "model"
    small_model("llama", unsettled=True, **form).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def same_operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use one kernel on both devices; a different order of sums could change a value stored in eight bits."""
    monkeypatch.setattr(fast_linear, "is_worthwhile", lambda: False)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def on_both(folder: Path, use: Callable[[LongMem], Any]) -> tuple[Any, Any]:
    """Return the results of `use` for the model on the CPU and on a GPU."""
    here = use(LongMem.from_pretrained(folder, search="torch"))
    with pretended_gpu() as device:
        model = LongMem.from_pretrained(folder, device=device)
        parameters = [*model.backbone.model.parameters(), *model.sidenet.parameters()]
        assert all(isinstance(each, PretendedTensor) for each in parameters)
        assert model.search_engine == "torch"
        there = use(model)
    return here, there


def test_documents_are_encoded_and_scored(folder: Path) -> None:
    def score(model: LongMem) -> list[np.ndarray]:
        window = WindowBuffer(model.config.memory_tokens, model.backbone.device, model.key_space)
        logprobs = []
        for segment in cut_segments(KEY, model.tokenizer.sequence(TEXT), SEGMENT):
            encoded = model.encode(segment, prepare=segment.index % 2 == 1)
            start = max(0, segment.start_token - model.config.memory_tokens)
            view = window.view(start, segment.start_token) if segment.index else None
            logprobs.append(model.score_segment(segment, encoded.block.keys, encoded.state, view).logprobs)
            window.append(encoded.block)
        return logprobs

    here, there = on_both(folder, score)
    assert len(here) > 6
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other, one, **ROUNDING)


def test_texts_are_scored_and_continued_with_a_stored_memory(folder: Path) -> None:
    def use(model: LongMem) -> tuple[np.ndarray, str]:
        store = InMemoryStore()
        for segment in cut_segments(KEY, model.tokenizer.sequence(TEXT), SEGMENT):
            store.put(model.encode(segment).block)
        memory = WritableDocument(store, KEY).as_read_only()
        return model.score(TEXT[:100], memory).logprobs, model.generate(TEXT[:50], memory, max_new_tokens=40)

    here, there = on_both(folder, use)
    np.testing.assert_allclose(there[0], here[0], **ROUNDING)
    assert there[1] == here[1]


def test_a_sidenet_is_trained(folder: Path) -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 250, 4 * SEGMENT + 1).astype(np.int32) for _ in range(2)]

    def train(model: LongMem) -> list[float]:
        config = TrainingConfig(steps=4, rows=2, micro_rows=2, warmup_steps=0, learning_rate=1e-4)
        trainer = Trainer(model, [lambda sequence=each: sequence for each in sequences], config)
        return [trainer.step().loss for _ in range(4)]

    here, there = on_both(folder, train)
    np.testing.assert_allclose(there, here, **ROUNDING)


def test_the_pretended_gpu_refuses_what_a_real_one_refuses() -> None:
    with pretended_gpu() as device:
        there = torch.arange(6.0, device=device).view(2, 3)
        assert there.device.type == device
        with pytest.raises(RuntimeError, match="one device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert torch.equal((there @ there.T)[torch.tensor([1])].cpu(), torch.tensor([[14.0, 50.0]]))
        there[0].copy_(torch.ones(3))
        assert there.tolist() == [[1.0, 1.0, 1.0], [3.0, 4.0, 5.0]]
