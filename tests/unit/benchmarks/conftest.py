# SPDX-License-Identifier: Apache-2.0
"""Backbone with a vocabulary so small that all tokens can be tried at one position, and contexts recur."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longmem.backbone.backbone import Backbone
from longmem.testing import save_small_backbone

VOCABULARY = 24


@pytest.fixture(scope="session")
def few_tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-tokens")
    save_small_backbone(folder, "llama", vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    return folder


@pytest.fixture(scope="session")
def few_tokens(few_tokens_folder: Path) -> Backbone:
    """Return a frozen backbone, shared by all tests; 128 positions."""
    return Backbone.load(few_tokens_folder)


@pytest.fixture(scope="session")
def random_sequence() -> Callable[..., np.ndarray]:
    """Return a factory `random_sequence(tokens, seed)` of sequences with recurring phrases, like a book."""

    def sequence(num_tokens: int, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        phrases = [random.integers(VOCABULARY, size=length) for length in (3, 5, 9)]
        parts = [phrases[random.integers(3)] if random.random() < 0.6 else random.integers(VOCABULARY, size=4)]
        while sum(map(len, parts)) < num_tokens:
            parts.append(phrases[random.integers(3)] if random.random() < 0.6 else random.integers(VOCABULARY, size=4))
        return np.concatenate(parts)[:num_tokens].astype(np.int32)

    return sequence


@pytest.fixture(scope="session")
def masked_forward() -> Callable[[Backbone, np.ndarray, Tensor | None], np.ndarray]:
    """Return a function for log-probs of `sequence[1:]` in one plain forward of transformers, masked or causal."""

    @torch.no_grad()
    def forward(backbone: Backbone, sequence: np.ndarray, allowed: Tensor | None = None) -> np.ndarray:
        tokens = torch.from_numpy(np.array(sequence)).long()
        mask = None if allowed is None else allowed[None, None]
        logits = backbone.model(input_ids=tokens[None, :-1], attention_mask=mask, use_cache=False).logits[0]
        scores: np.ndarray = logits.double().log_softmax(dim=1).gather(1, tokens[1:, None]).squeeze(1).numpy()
        return scores

    return forward
