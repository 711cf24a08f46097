# SPDX-License-Identifier: Apache-2.0
"""Forward passes of a LongMem over segments: backbone, lower SideNet layers, SideNet with memory.

    tokens ─► backbone ─► taps ─► SideNet below the memory layer ─► state ┐
                     └──► keys, rounded as the store rounds them ─────────┤
                                                   what may be read ──────┴─► ReadingInput ─► SideNet ─► scores

Every caller builds what the SideNet is given with `SegmentModel.sidenet_input`, so that a score cannot depend on its
caller. This module knows no texts, stores or documents: `longmem.scoring` and `longmem.memory.context` are above it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor

from longmem.backbone.backbone import Backbone, BackboneOutput, joined_rows
from longmem.backbone.shared_prompts import rows_by_prompt, shared_tokens
from longmem.backbone.tokenizer import Tokenizer
from longmem.config import LongMemConfig
from longmem.dtypes import to_array, to_tensor
from longmem.errors import ConfigError, NumericError
from longmem.kv_format import pack, rounded, unpack
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.retrieval import choose_engine, create_search
from longmem.sidenet.cache_reader import CacheReader
from longmem.sidenet.readers import retrieval_stats
from longmem.sidenet.reading_model import ReadingInput, ReadingModel, ReadingOutput, RowPrompt
from longmem.sidenet.sidenet import start_state
from longmem.sidenet.token_readings import token_readings
from longmem.stored_format import num_not_finite
from longmem.types import EncodedSegment, Fingerprint, KVArray, KVBlock, Segment, SegmentScore


class SegmentModel:
    """A frozen backbone and the model that reads its memory. Not thread-safe: one per worker."""

    def __init__(
        self,
        backbone: Backbone,
        sidenet: ReadingModel,
        tokenizer: Tokenizer,
        config: LongMemConfig,
        search: str = "auto",
    ) -> None:
        """Move the SideNet to the backbone's device. Raises ConfigError where a segment is longer than the backbone's
        positions."""
        backbone.check_segment_tokens(config.segment_tokens + config.has_sink)
        if config.has_sink and tokenizer.start_token is None:
            raise ConfigError(
                f"sink=True needs a start token, and the tokenizer of {backbone.name} has neither a beginning- nor an "
                "end-of-text token; use sink=False"
            )
        self.backbone = backbone
        self.sidenet = sidenet.eval().to(backbone.device)
        self.tokenizer = tokenizer
        self.config = config
        self.search_engine = choose_engine(search, backbone.device.type)
        self.search = create_search(self.search_engine)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Identity of the keys and values that this model writes and can read. Settings and mean keys must not change
        afterwards."""
        return Fingerprint(
            backbone=self.backbone.digest(),
            tokenizer=self.tokenizer.digest(),
            memory_layer=self.sidenet.memory_layer,
            kv_heads=self.backbone.shape.kv_heads,
            head_dim=self.backbone.shape.head_dim,
            chunk_tokens=self.config.chunk_tokens,
            segment_tokens=self.config.segment_tokens,
            compute_dtype=str(self.backbone.dtype).removeprefix("torch."),
            kv_dtype=self.config.kv_dtype,
            num_layers=len(self.stored_layers),
            sink=self.config.has_sink,
            encoded_behind=self._encoded_behind(),
        )

    def _encoded_behind(self) -> str:
        """Return all that decides what a segment is encoded behind; empty where each is encoded alone."""
        found = self.config.encoded_behind
        if not found or self.config.block_choice not in ("keys", "both"):
            return found
        # blocks are chosen by keys in the form in which they are searched
        mean = self.sidenet.reader.key_space.mean
        assert mean is not None, "keys=raw needs another query than key_space, which one pass has"
        digest = xxhash.xxh3_64_hexdigest(mean.float().numpy(force=True).tobytes())
        return f"{found}, keys={self.config.keys}, mean key {digest}"

    @property
    def num_state_parts(self) -> int:
        """Number of parts of the state of an EncodedSegment."""
        return 1 if self.config.one_pass else self.sidenet.num_parts

    @property
    def stored_layers(self) -> Sequence[int]:
        """Layers whose keys and values are stored."""
        return range(self.backbone.num_layers) if self.config.reads_all_layers else [self.sidenet.memory_layer]

    @property
    def key_space(self) -> KeySpace:
        """Form of keys that this model's views must have."""
        return replace(
            self.sidenet.reader.key_space,
            sketched=self.search.reads_sketches,
            celled=self.search.reads_cells,
            layer=self.sidenet.memory_layer if self.config.reads_all_layers else None,
        )

    def run_backbone(self, tokens: Int[Tensor, "batch tokens"], cache: Any = None) -> BackboneOutput:
        """Run the backbone once, without gradients, keeping what is stored or read of it.

        Rows that do not begin with the sink get it in front, where the model has one; the output leaves it out.
        `cache` (of `backbone.new_cache()`) decodes step by step.
        """
        if not self.config.has_sink or (cache is not None and cache.get_seq_length()):
            return self._run(tokens, cache)
        start = self.tokenizer.start_token
        assert start is not None, "checked when the model was made"
        begins = tokens[:, 0].eq(start)
        if begins.all():
            return self._run(tokens, cache)
        if begins.any():
            assert cache is None, "decoding takes one kind of row: all begin with the sink, or none"
            outputs = self._run(tokens[begins], None), self.run_backbone(tokens[~begins])
            return joined_rows(outputs, torch.cat([begins.nonzero(), (~begins).nonzero()]).flatten().argsort())
        sink = torch.full_like(tokens[:, :1], start)
        output = self._run(torch.cat([sink, tokens], dim=1), cache)
        return BackboneOutput(output.keys[:, 1:], output.values[:, 1:], output.taps[:, :, 1:], output.hidden[:, 1:])

    def run_prompts(self, tokens: Int[Tensor, "batch tokens"], prompts: Sequence[int]) -> BackboneOutput:
        """Return `run_backbone(tokens)` up to rounding; rows with equal first `prompts[row]` tokens run these once."""
        whole, outputs, order = [], [], []
        for prompt, rows in rows_by_prompt(tokens, prompts).items():
            shared = shared_tokens(len(prompt), len(rows))
            if shared == 0:
                whole += rows
                continue
            cache = self.backbone.new_cache()
            first = self.run_backbone(tokens[rows[:1], :shared], cache)
            cache.batch_repeat_interleave(len(rows))
            outputs.append(first.continued(self.run_backbone(tokens[rows, shared:], cache)))
            order += rows
        if not outputs:
            return self.run_backbone(tokens)
        if whole:
            outputs.append(self.run_backbone(tokens[whole]))
        return joined_rows(outputs, torch.tensor([*order, *whole]).argsort())

    def _run(self, tokens: Int[Tensor, "batch tokens"], cache: Any) -> BackboneOutput:
        parts = self.sidenet.num_parts
        # gradients need the layers, even where these change nothing yet
        runs_layers = parts > 1 or (parts == 1 and torch.is_grad_enabled())
        tap_every = self.config.layer_reduction if runs_layers else None
        return self.backbone.forward(tokens, self.stored_layers, tap_every, cache)

    def searched(self, keys: Shaped[Any, "*batch tokens stored_heads width"]) -> Any:
        """Return those of the memory layer among stored keys, a tensor or an array."""
        if not self.config.reads_all_layers:
            return keys
        first = self.sidenet.memory_layer * self.backbone.shape.kv_heads
        return keys[..., first : first + self.backbone.shape.kv_heads, :]

    def sidenet_input(
        self,
        tokens: Int[Tensor, "batch tokens"],
        output: BackboneOutput,
        views: Sequence[MemoryView | None],
        *,
        keys: Float[Tensor, "batch tokens stored_heads head_dim"] | None = None,
        cache: Any = None,
        before: Int[Tensor, "batch earlier"] | None = None,
        prompts: Sequence[RowPrompt] | None = None,
    ) -> ReadingInput:
        """Return what the SideNet is given after `run_backbone(tokens)`; row b reads `views[b]`.

        Runs the SideNet's layers below the memory layer. Gradients reach them where they are enabled. Raises
        ConfigError for a model of one pass, whose tokens are encoded with the memory.

        Args:
            keys: Keys that ask the memory; by default those of `output`, rounded as the store rounds them.
            cache: Of `sidenet.new_cache()`, to decode step by step.
            before: Tokens of the segment that earlier steps have read.
            prompts: Leading tokens of each row that choose what every layer reads.
        """
        self._refuse_one_pass()
        given = rounded(self.searched(output.keys), self.config.kv_dtype) if keys is None else self.searched(keys)
        return self._input(tokens, self._start(output), given, views, cache, before, prompts)

    def _start(self, output: BackboneOutput) -> Float[Tensor, "parts batch tokens hidden"]:
        """Return the state that a reading begins with: of what the backbone kept, what the model needs."""
        if len(output.taps):
            return start_state(output.taps)
        return output.hidden[None][: self.sidenet.num_parts]

    def _input(
        self,
        tokens: Int[Tensor, "batch tokens"],
        state: Float[Tensor, "parts batch tokens hidden"],
        keys: Shaped[Tensor, "batch tokens kv_heads head_dim"],
        views: Sequence[MemoryView | None],
        cache: Any = None,
        before: Int[Tensor, "batch earlier"] | None = None,
        prompts: Sequence[RowPrompt] | None = None,
    ) -> ReadingInput:
        return ReadingInput(tokens, self.sidenet.prepare(tokens, state, cache), keys, list(views), before, prompts)

    def encode_in_document(
        self, segment: Segment, past: Callable[[], MemoryView | None], prepare: bool = False
    ) -> EncodedSegment:
        """Encode a segment of a document: behind the view of its past in one pass, otherwise alone.

        `past` returns that view, and is called in one pass only; `prepare` is for `encode`. Raises NumericError.
        """
        return self.encode_behind(segment, past()) if self.config.one_pass else self.encode(segment, prepare)

    @torch.no_grad()
    def encode(self, segment: Segment, prepare: bool = False) -> EncodedSegment:
        """Run the backbone over the segment alone.

        With `prepare`, run the SideNet's layers below the memory layer too; else `score_segment` runs them. Raises
        NumericError when anything that the backbone makes is not finite, ConfigError for a model of one pass.
        """
        self._refuse_one_pass()
        tokens = torch.from_numpy(np.array(segment.tokens))[None]
        output = self.run_backbone(tokens)
        state = self._start(output)
        if prepare:
            state = self.sidenet.prepare(tokens, state)
        return self._encoded(segment, output, state)

    @torch.no_grad()
    def encode_behind(self, segment: Segment, view: MemoryView | None) -> EncodedSegment:
        """Run the backbone over the segment behind the memory that it reads, for a model of one pass.

        `backbone_logprobs` are then those of the backbone behind its memory, without copies. The state is the hidden
        states of this forward, so that `score_segment` runs no layer. Raises NumericError.
        """
        assert isinstance(self.sidenet, CacheReader), "one_pass needs memory_layers=all"
        assert self.config.one_pass, "a model of two passes encodes a segment alone"
        tokens = torch.from_numpy(np.array(segment.tokens))[None]
        output = self.run_backbone(tokens) if view is None else self.sidenet.encode(tokens, view, self.search)
        return self._encoded(segment, output, output.hidden[None])

    def _encoded(
        self, segment: Segment, output: BackboneOutput, state: Float[Tensor, "parts 1 tokens hidden"]
    ) -> EncodedSegment:
        logprobs = self.backbone.target_logprobs(output.hidden[0], torch.from_numpy(np.array(segment.targets)))
        where = f"{segment.key} segment {segment.index}"
        require_finite(logprobs, f"{where}: the backbone's log-probabilities", "check the backbone's weights")
        return EncodedSegment(
            block=self._block(segment, output.keys[0], output.values[0]),
            state=to_array(state[:, 0]),
            backbone_logprobs=to_array(logprobs),
            read_memory=self.config.one_pass,
        )

    def block(self, segment: Segment, keys: Tensor, values: Tensor) -> KVBlock:
        """Pack keys and values [tokens, kv_heads, head_dim] of a segment as they are stored.

        Raises NumericError for numbers that are not finite, or not once they are stored; ConfigError for a model of one
        pass, where only `encode_behind` makes blocks.
        """
        self._refuse_one_pass()
        return self._block(segment, keys, values)

    def _refuse_one_pass(self) -> None:
        if self.config.one_pass:
            raise ConfigError(
                "one_pass=True scores documents, whose segments are encoded in order, each with the memory before it; "
                "for anything else, open the model with one_pass=False"
            )

    def _block(self, segment: Segment, keys: Tensor, values: Tensor) -> KVBlock:
        stored = []
        for name, tensor in (("keys", keys), ("values", values)):
            layers = "all layers" if self.config.reads_all_layers else f"layer {self.sidenet.memory_layer}"
            where = f"{segment.key} segment {segment.index}: {name} of {layers}"
            require_finite(tensor, where, "check the backbone's weights")
            packed = pack(tensor, self.config.kv_dtype)
            if count := num_not_finite(packed, self.config.kv_dtype):
                raise NumericError(
                    f"{where} stored as {self.config.kv_dtype}: expected finite numbers, {count} are too large for it; "
                    "use kv_dtype=bfloat16"
                )
            stored.append(packed)
        return KVBlock(
            key=segment.key,
            segment=segment.index,
            start_token=segment.start_token,
            tokens=segment.tokens,
            keys=stored[0],
            values=stored[1],
            fingerprint=self.fingerprint,
        )

    @torch.no_grad()
    def score_segment(
        self,
        segment: Segment,
        keys: KVArray,
        state: Shaped[np.ndarray, "parts tokens hidden"],
        view: MemoryView | None,
        backbone_logprobs: Float32[np.ndarray, " targets"] | None = None,
    ) -> SegmentScore:
        """Return log-probabilities of the segment's targets, which read `view` and no other memory.

        `keys` are those of the segment's own block, `state` and `backbone_logprobs` those of its EncodedSegment. Where
        the hidden states are the backbone's own, the latter are not computed again; without a view, nothing runs.
        Raises NumericError.
        """
        assert view is None or view.end_token == segment.start_token, (
            f"segment {segment.index} starts at {segment.start_token}, its view ends at {view and view.end_token}"
        )
        device = self.backbone.device
        tokens = torch.from_numpy(np.array(segment.tokens))[None]
        targets = torch.from_numpy(np.array(segment.targets))
        if view is None and backbone_logprobs is not None and not self.sidenet.changes_backbone:
            return _unread(segment, tokens[0], targets, backbone_logprobs)
        own = unpack(np.ascontiguousarray(self.searched(keys)), self.config.kv_dtype, device)
        given = self._input(tokens, to_tensor(state, device)[:, None], own[None], [view])
        output = self.sidenet(given, self.search)
        known = None if backbone_logprobs is None or len(state) != 1 else to_tensor(backbone_logprobs, device)
        uncopied = self.backbone.target_logprobs(output.hidden[0], targets) if known is None else known
        copies = output.copies[0]
        logprobs = uncopied if copies is None else copies.mix_targets(uncopied, targets)
        require_finite(
            logprobs, f"{segment.key} segment {segment.index}: the SideNet's log-probabilities", "check its weights"
        )
        readings = None
        if segment.keep_readings:
            read, layers_read = self.sidenet.places_read(output, 0), output.layers_read[0]
            if self.config.one_pass and view is not None:
                assert isinstance(self.sidenet, CacheReader), "one_pass needs memory_layers=all"
                layers_read = self.sidenet.places(view, self.search)
            readings = token_readings(read, layers_read, view, tokens[0], targets, uncopied)
        return SegmentScore(
            key=segment.key,
            segment=segment.index,
            logprobs=to_array(logprobs),
            retrieval=retrieval_stats(
                output.readings[0],
                view,
                self.sidenet.gate_mean(),
                None if copies is None else copies.share,
                segment.start_token,
            ),
            readings=readings,
        )

    def target_logprobs(
        self, output: ReadingOutput, row: int, targets: Int[Tensor, " targets"]
    ) -> Float32[Tensor, " targets"]:
        """Return the natural-log probability of target i after position i of a row, copies mixed in."""
        logprobs = self.backbone.target_logprobs(output.hidden[row], targets)
        copies = output.copies[row]
        return logprobs if copies is None else copies.mix_targets(logprobs, targets)


def _unread(
    segment: Segment, tokens: Tensor, targets: Tensor, backbone_logprobs: Float32[np.ndarray, " targets"]
) -> SegmentScore:
    """Return the score of a segment that reads nothing, by a model that is the backbone then."""
    logprobs = to_tensor(backbone_logprobs, torch.device("cpu"))
    return SegmentScore(
        key=segment.key,
        segment=segment.index,
        logprobs=backbone_logprobs,
        retrieval=retrieval_stats(None, None, 0.0, None, segment.start_token),
        readings=token_readings(None, None, None, tokens, targets, logprobs) if segment.keep_readings else None,
    )


def require_finite(tensor: Tensor, what: str, advice: str) -> None:
    """Raise NumericError, naming `what` and giving the advice, unless every number is finite."""
    # a sum reads the numbers once; isfinite writes several arrays of their size
    if bool(tensor.sum().isfinite()):
        return
    # the sum of finite numbers can be too large for their type
    if count := int((~tensor.isfinite()).sum()):
        raise NumericError(
            f"{what}: expected finite numbers, {count} of {tensor.numel()} are NaN or infinite; {advice}"
        )
