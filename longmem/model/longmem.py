"""LongMem: a frozen backbone, a SideNet, and what a pipeline asks of them: encode a segment, score a segment."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped
from torch import Tensor

from longmem.backbone.backbone import Backbone
from longmem.backbone.tokenizer import Tokenizer
from longmem.config import Dtype, LongMemConfig
from longmem.dtypes import to_array, to_tensor
from longmem.errors import NumericError
from longmem.kv_format import pack, unpack
from longmem.memory.key_transform import KeySpace
from longmem.memory.view import MemoryView
from longmem.retrieval import choose_engine, create_search
from longmem.sidenet.readers import retrieval_stats
from longmem.sidenet.sidenet import SideNet, SideNetInput, SideNetOutput, start_state
from longmem.stored_format import num_not_finite
from longmem.text.language_reference import language_reference
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey, EncodedSegment, Fingerprint, KVArray, KVBlock, Segment, SegmentScore

if TYPE_CHECKING:
    from longmem.scoring.generate import Sampling
    from longmem.scoring.text import TextScores
    from longmem.store.document import DocumentMemory


CALIBRATION_CHARACTERS = 20_000
"""Length of the text that a new model takes its mean keys from; training takes them from its own data."""


class LongMem:
    """One model, ready to encode (backbone) and to score (SideNet). Not thread-safe: one per worker."""

    def __init__(
        self, backbone: Backbone, sidenet: SideNet, tokenizer: Tokenizer, config: LongMemConfig, search: str = "auto"
    ) -> None:
        backbone.check_segment_tokens(config.segment_tokens)
        self.backbone = backbone
        self.sidenet = sidenet.eval().to(backbone.device)
        self.tokenizer = tokenizer
        self.config = config
        self.search_engine = choose_engine(search, backbone.device.type)
        self.search = create_search(self.search_engine)

    @classmethod
    def from_backbone(
        cls,
        source: str | Path,
        *,
        dtype: Dtype = "float32",
        device: str = "cpu",
        search: str = "auto",
        adapter: str | Path | None = None,
        **settings: Any,
    ) -> "LongMem":
        """Return a new, untrained SideNet on a frozen Hugging Face causal LM (folder or hub id).

        `adapter` is the folder of a PEFT adapter, which is merged into it (needs the extra `adapter`). `settings` are
        fields of LongMemConfig. Raises ModelError and its kinds, ConfigError.
        """
        from longmem.model.checkpoint import backbone_name

        config = LongMemConfig.from_dict(settings)
        backbone = Backbone.load(source, dtype, backbone_name(source), adapter)
        backbone.check_segment_tokens(config.segment_tokens)
        tokenizer = Tokenizer(source, backbone.vocab_size, config.special_tokens)
        backbone.model.to(device)
        model = cls(backbone, SideNet(backbone, config), tokenizer, config, search)
        if config.keys != "raw":
            model.calibrate(language_reference().text[:CALIBRATION_CHARACTERS])
        return model

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: Dtype = "float32",
        device: str = "cpu",
        search: str = "auto",
        **settings: Any,
    ) -> "LongMem":
        """A saved LongMem (folder or hub id): `config.json`, `sidenet.safetensors`, and its backbone.

        `settings` replace fields of the saved configuration. Raises CheckpointError for anything missing or damaged.
        """
        from longmem.model.checkpoint import load_parts

        backbone, sidenet, tokenizer, config = load_parts(source, dtype, device, settings)
        return cls(backbone, sidenet, tokenizer, config, search)

    def with_trained_steps(self, steps: int) -> "LongMem":
        """The same model (sharing all weights) whose configuration says how long it was trained."""
        config = replace(self.config, trained_steps=steps)
        return LongMem(self.backbone, self.sidenet, self.tokenizer, config, self.search_engine)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a self-contained folder that `from_pretrained` reads. Never overwrites another model's folder."""
        from longmem.model.checkpoint import save_parts

        save_parts(Path(folder), self.backbone, self.sidenet, self.tokenizer, self.config)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Identity of the keys and values that this model writes and can read."""
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
        )

    @property
    def trained(self) -> bool:
        """Whether the SideNet's layers differ from the backbone: with every scale at 0, where training starts, they
        cannot, and only a copy head can make the result another one."""
        return bool(self.sidenet.scale.detach().any())

    @torch.no_grad()
    def calibrate(self, text: str) -> None:
        """Set the mean keys that centred and unit keys are measured from, by reading a sample of text."""
        sequence = self.tokenizer.sequence(text)
        keys = []
        for segment in cut_segments(DocumentKey("", ""), sequence, self.config.segment_tokens):
            tokens = torch.from_numpy(np.array(segment.tokens))[None]
            keys.append(self.backbone.forward(tokens, self.sidenet.memory_layer, self.config.layer_reduction).keys[0])
        self.sidenet.reader.calibrate(torch.cat(keys))

    @property
    def key_space(self) -> KeySpace:
        """The form of keys that this model's views must have."""
        return replace(
            self.sidenet.reader.key_space, sketched=self.search.reads_sketches, celled=self.search.reads_cells
        )

    @torch.no_grad()
    def encode(self, segment: Segment, prepare: bool = False) -> EncodedSegment:
        """One backbone forward over the segment alone; with `prepare` also the SideNet's layers that need no memory,
        which `score_segment` runs otherwise. Raises NumericError when anything that the backbone makes is not finite.
        """
        tokens = torch.from_numpy(np.array(segment.tokens))[None]
        output = self.backbone.forward(tokens, self.sidenet.memory_layer, self.config.layer_reduction)
        logprobs = self.backbone.target_logprobs(output.hidden[0], torch.from_numpy(np.array(segment.targets)))
        where = f"{segment.key} segment {segment.index}"
        state = start_state(output.taps)
        if prepare:
            state = self.sidenet.prepare(tokens, state)
        require_finite(logprobs, f"{where}: the backbone's log-probabilities", "check the backbone's weights")
        return EncodedSegment(
            block=self.block(segment, output.keys[0], output.values[0]),
            state=to_array(state[:, 0]),
            backbone_logprobs=to_array(logprobs),
        )

    def block(self, segment: Segment, keys: Tensor, values: Tensor) -> KVBlock:
        """Pack keys and values [tokens, kv_heads, head_dim] of a segment as they are stored."""
        stored = []
        for name, tensor in (("keys", keys), ("values", values)):
            where = f"{segment.key} segment {segment.index}: {name} of layer {self.sidenet.memory_layer}"
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
    ) -> SegmentScore:
        """Log-probabilities of the segment's targets, reading `view` and nothing else; `keys` are those of the
        segment's own block, `state` is of its EncodedSegment. Raises NumericError."""
        assert view is None or view.end_token == segment.start_token, (
            f"segment {segment.index} starts at {segment.start_token}, its view ends at {view and view.end_token}"
        )
        device = self.backbone.device
        tokens = torch.from_numpy(np.array(segment.tokens))[None]
        given = SideNetInput(
            tokens=tokens,
            state=self.sidenet.prepare(tokens, to_tensor(state, device)[:, None]),
            keys=unpack(keys, self.config.kv_dtype, device)[None],
            views=[view],
        )
        output = self.sidenet(given, self.search)
        logprobs = self.target_logprobs(output, 0, torch.from_numpy(np.array(segment.targets)))
        require_finite(
            logprobs, f"{segment.key} segment {segment.index}: the SideNet's log-probabilities", "check its weights"
        )
        copies = output.copies[0]
        return SegmentScore(
            key=segment.key,
            segment=segment.index,
            logprobs=to_array(logprobs),
            retrieval=retrieval_stats(
                output.readings[0],
                view,
                self.sidenet.gate.sigmoid(),
                None if copies is None else copies.share,
                segment.start_token,
            ),
        )

    def target_logprobs(
        self, output: SideNetOutput, row: int, targets: Int[Tensor, " targets"]
    ) -> Float32[Tensor, " targets"]:
        """Natural-log probability of target i after position i of a row, copies mixed in."""
        logprobs = self.backbone.target_logprobs(output.hidden[row], targets)
        copies = output.copies[row]
        return logprobs if copies is None else copies.mix_targets(logprobs, targets)

    def score(self, text: str, memory: "DocumentMemory | None" = None) -> "TextScores":
        """Log-probability of every token of a text; see `longmem.scoring.text.score_text`."""
        from longmem.scoring.text import score_text

        return score_text(self, text, memory)

    def generate(
        self,
        prompt: str,
        memory: "DocumentMemory | None" = None,
        *,
        max_new_tokens: int = 50,
        sampling: "Sampling | None" = None,
    ) -> str:
        """Continue a prompt with memory; returns the new text. See `longmem.scoring.generate.generate`."""
        from longmem.scoring.generate import generate

        return generate(self, prompt, memory, max_new_tokens=max_new_tokens, sampling=sampling)


def require_finite(tensor: Tensor, what: str, advice: str) -> None:
    if not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise NumericError(
            f"{what}: expected finite numbers, {count} of {tensor.numel()} are NaN or infinite; {advice}"
        )
