# SPDX-License-Identifier: Apache-2.0
"""InfLLM against plain transformers where all is local, and against a loop over queries where blocks are read."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.baselines.infllm import Asking, InfLLM, InfLLMSizes
from longmem.backbone.backbone import Backbone
from longmem.backbone.small import save_small_backbone
from longmem.errors import ConfigError

TOLERANCE = 1e-5
"""Tolerance of float32 log-probabilities below 20 in another order: some roundings of 20 · 2⁻²⁴."""
ALIGNED = InfLLMSizes(
    initial_tokens=4, local_tokens=16, block_tokens=4, read_blocks=3, representatives=2, chunk_tokens=8
)
UNALIGNED = InfLLMSizes(
    initial_tokens=3, local_tokens=14, block_tokens=5, read_blocks=2, representatives=2, chunk_tokens=8
)


class NaiveInfLLM:
    """Llama layer by layer, token by token, in float64; of transformers it uses the layers and the rotation."""

    def __init__(self, backbone: Backbone, sizes: InfLLMSizes, asking: str) -> None:
        self.model = copy.deepcopy(backbone.model).double()
        self.sizes = sizes
        self.asking = asking
        self.blocks_read: list[set[int]] = []

    def rotated(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Rotate [tokens, heads, head_dim] to one position a token."""
        cos, sin = self.model.model.rotary_emb(vectors, positions[None])
        return apply_rotary_pos_emb(vectors[None], vectors[None], cos, sin, unsqueeze_dim=2)[0][0]

    @torch.no_grad()
    def logprobs(self, sequence: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(np.array(sequence)).long()
        hidden = self.model.model.embed_tokens(tokens[:-1])
        for layer in self.model.model.layers:
            hidden = self.run(layer, hidden)
        logits = self.model.lm_head(self.model.model.norm(hidden))
        scores: np.ndarray = logits.log_softmax(dim=1).gather(1, tokens[1:, None]).squeeze(1).numpy()
        return scores

    def run(self, layer: torch.nn.Module, hidden: Tensor) -> Tensor:
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        queries, keys, values = (
            part(normed).view(len(hidden), -1, attention.head_dim)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        group = queries.shape[1] // keys.shape[1]
        # query head h reads KV head h // group
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
        places = torch.arange(len(hidden))
        near_queries, near_keys = self.rotated(queries, places), self.rotated(keys, places)
        far_queries = self.rotated(queries, torch.full_like(places, self.sizes.local_tokens))
        outputs = []
        for start in range(0, len(hidden), self.sizes.chunk_tokens):
            end = min(start + self.sizes.chunk_tokens, len(hidden))
            far, first_local = self.read_places(near_queries, near_keys, far_queries, keys, start, end, group)
            for token in range(start, end):
                local = range(first_local, token + 1)
                heads = []
                for head in range(queries.shape[1]):
                    scores = [far_queries[token, head] @ keys[place, head] for place in far]
                    scores += [near_queries[token, head] @ near_keys[place, head] for place in local]
                    weights = (torch.stack(scores) * attention.scaling).softmax(dim=0)
                    heads.append(weights @ values[[*far, *local], head])
                outputs.append(torch.cat(heads))
        hidden = hidden + attention.o_proj(torch.stack(outputs))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def read_places(
        self,
        near_queries: Tensor,
        near_keys: Tensor,
        far_queries: Tensor,
        keys: Tensor,
        start: int,
        end: int,
        group: int,
    ) -> tuple[list[int], int]:
        """Return the far tokens that a chunk reads, and the first token of its local window."""
        sizes = self.sizes
        beyond = start - sizes.local_tokens
        if beyond < sizes.initial_tokens:
            return [], 0
        num_blocks = (beyond - sizes.initial_tokens) // sizes.block_tokens
        asking = slice(start, end) if self.asking == "chunk" else slice(start - sizes.chunk_tokens, start)
        relevance = []
        for block in range(num_blocks):
            first = sizes.initial_tokens + block * sizes.block_tokens
            total = 0.0
            for head in range(0, keys.shape[1], group):
                of_group = slice(head, head + group)
                scores = {}
                for token in range(first, first + sizes.block_tokens):
                    window = near_queries[token + 1 : token + 1 + sizes.local_tokens, of_group]
                    assert len(window) == sizes.local_tokens, "the window is complete"
                    scores[token] = float((window @ near_keys[token, head]).mean())
                for token in sorted(scores, key=lambda token: -scores[token])[: sizes.representatives]:
                    total += float((far_queries[asking, of_group] @ keys[token, head]).sum())
            relevance.append(total)
        best = sorted(sorted(range(num_blocks), key=lambda block: -relevance[block])[: sizes.read_blocks])
        self.blocks_read.append(set(best))
        far = list(range(sizes.initial_tokens))
        for block in best:
            first = sizes.initial_tokens + block * sizes.block_tokens
            far += range(first, first + sizes.block_tokens)
        return far, sizes.initial_tokens + num_blocks * sizes.block_tokens


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("two-layers")
    save_small_backbone(folder, "llama", vocab_size=24, bos_token_id=0, eos_token_id=0, num_hidden_layers=2)
    return Backbone.load(folder)


@pytest.mark.parametrize("asking", ["chunk", "before"])
@pytest.mark.parametrize("sizes", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
def test_equals_a_loop_over_queries(
    two_layers: Backbone, random_sequence: Callable, sizes: InfLLMSizes, asking: Asking
) -> None:
    sequence = random_sequence(70)
    naive = NaiveInfLLM(two_layers, sizes, asking)
    wanted = naive.logprobs(sequence)
    assert len(set(map(frozenset, naive.blocks_read))) > 3, "different blocks are read"
    np.testing.assert_allclose(InfLLM(two_layers, sizes, asking).logprobs(sequence), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "granite", "olmo2", "qwen3"])
def test_within_the_local_window_equals_plain_transformers(
    small_backbone: Callable[..., Path], masked_forward: Callable, family: str
) -> None:
    backbone = Backbone.load(small_backbone(family))
    sequence = np.random.default_rng(0).integers(257, size=101).astype(np.int32)
    before = backbone.model.config._attn_implementation
    found = InfLLM(backbone, InfLLMSizes(local_tokens=112, chunk_tokens=16)).logprobs(sequence)
    np.testing.assert_allclose(found, masked_forward(backbone, sequence), atol=TOLERANCE)
    assert backbone.model.config._attn_implementation == before


def test_far_blocks_change_predictions(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(100)
    other = sequence.copy()
    other[8:12] = (other[8:12] + 5) % 24  # the first block
    baseline = InfLLM(few_tokens, InfLLMSizes(4, 16, 4, read_blocks=100, representatives=2, chunk_tokens=8))
    moved = baseline.logprobs(sequence) != baseline.logprobs(other)
    assert moved[-8:].all()


def test_asking_with_the_chunk_itself_sees_its_later_tokens(few_tokens: Backbone, random_sequence: Callable) -> None:
    """The paper's lookup is no likelihood: the last token of a chunk changes predictions before it."""
    sequence = random_sequence(97)
    other = sequence.copy()
    other[95] = (other[95] + 5) % 24
    sizes = InfLLMSizes(4, 16, 4, read_blocks=1, representatives=2, chunk_tokens=48)
    before = {}
    for asking in ("chunk", "before"):
        baseline = InfLLM(few_tokens, sizes, asking)
        before[asking] = np.array_equal(baseline.logprobs(sequence)[:94], baseline.logprobs(other)[:94])
    assert before == {"chunk": False, "before": True}


def test_a_context_goes_on_where_it_was(few_tokens: Backbone, random_sequence: Callable) -> None:
    sequence = random_sequence(101)
    baseline = InfLLM(few_tokens, ALIGNED)
    tokens = torch.from_numpy(sequence).long()
    context = baseline.new_context()
    baseline.read(context, tokens[:64])
    forked = [layer.fork() for layer in context]
    baseline.score(forked, tokens[:40], tokens[1:41])
    found = baseline.score(context, tokens[64:-1], tokens[65:])
    np.testing.assert_array_equal(found, baseline.logprobs(sequence)[64:])
    # 100 tokens, of which 16 to 19 stay local and 4 are initial
    assert [layer.num_blocks for layer in context] == [20] * few_tokens.num_layers


def test_a_context_holds_each_token_once(few_tokens: Backbone, random_sequence: Callable) -> None:
    """A view that stays in a context would hold the whole local window of its chunk."""
    baseline = InfLLM(few_tokens, ALIGNED)
    context = baseline.new_context()
    baseline.read(context, torch.from_numpy(random_sequence(96)).long())
    shape = few_tokens.shape
    for layer in context:
        parts = [part for block in layer._blocks for part in block]
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
        num_values = 2 * layer.num_blocks * ALIGNED.block_tokens * shape.kv_heads * shape.head_dim
        assert layer.num_blocks == 19
        assert sum(storages.values()) == num_values * parts[0].element_size()


@pytest.mark.parametrize(
    ("family", "needed"), [("gpt2", "rotary"), ("bloom", "rotary"), ("mistral", "sliding"), ("gemma3_text", "sliding")]
)
def test_other_positions_are_refused(small_backbone: Callable[..., Path], family: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=needed):
        InfLLM(Backbone.load(small_backbone(family)), ALIGNED)


def test_a_window_beyond_the_positions_is_refused(few_tokens: Backbone) -> None:
    with pytest.raises(ConfigError, match="128"):
        InfLLM(few_tokens, InfLLMSizes(local_tokens=121, chunk_tokens=8))
