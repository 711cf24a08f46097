# SPDX-License-Identifier: Apache-2.0
"""LongMem: a frozen backbone and a SideNet, opened from a folder or hub id, that score and generate texts."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longmem.backbone.backbone import Backbone
from longmem.backbone.tokenizer import Tokenizer
from longmem.config import Dtype, LongMemConfig, with_fitting_sizes
from longmem.display import facts_html
from longmem.model.checkpoint import load_parts, new_reading_model, save_parts
from longmem.model.folders import backbone_name
from longmem.model.forward import SegmentModel
from longmem.scoring.generate import Sampling, generate
from longmem.scoring.text import TextScores, score_text
from longmem.scoring.window_scores import WindowScores, score_windows
from longmem.store.document import DocumentMemory
from longmem.stored_format import token_bytes
from longmem.text.language_reference import language_reference
from longmem.text.segments import cut_segments
from longmem.types import DocumentKey
from longmem.wording import counted

CALIBRATION_CHARACTERS = 20_000
"""Length of the text that a new model takes its mean keys from; training takes them from its own data."""


class LongMem(SegmentModel):
    """Model that is opened from a folder or hub id, and scores and generates texts. Not thread-safe: one per worker."""

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
        fields of LongMemConfig; sizes that are not given fit the backbone (`with_fitting_sizes`). Raises ModelError and
        its kinds, ConfigError.
        """
        # a wrong setting is told before the weights are loaded
        LongMemConfig.from_dict(settings)
        backbone = Backbone.load(source, dtype, backbone_name(source), adapter)
        config = LongMemConfig.from_dict(with_fitting_sizes(settings, backbone.max_tokens))
        backbone.check_segment_tokens(config.segment_tokens)
        tokenizer = Tokenizer(source, backbone.vocab_size, config.special_tokens)
        backbone.model.to(device)
        model = cls(backbone, new_reading_model(backbone, tokenizer, config), tokenizer, config, search)
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
        """Open a saved LongMem (folder or hub id): `config.json`, `sidenet.safetensors`, and its backbone.

        `settings` replace fields of the saved configuration. Raises CheckpointError for anything missing or damaged.
        """
        backbone, sidenet, tokenizer, config = load_parts(source, dtype, device, settings)
        return cls(backbone, sidenet, tokenizer, config, search)

    def __repr__(self) -> str:
        config, device = self.config, self.backbone.device.type
        return (
            f"LongMem({self.backbone.name}, {self._reading}, segments of {config.segment_tokens:,} and memory of "
            f"{counted(config.memory_tokens, 'token')}, {self._dtype} on {device})"
        )

    def _repr_html_(self) -> str:
        config, backbone = self.config, self.backbone
        all_parameters, own_parameters = (
            f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"
            for module in (backbone.model, self.sidenet)
        )
        shape = backbone.shape
        stored = token_bytes(len(self.stored_layers) * shape.kv_heads, shape.head_dim, config.kv_dtype)
        return facts_html(
            "LongMem",
            {
                "backbone": f"{backbone.name} ({backbone.model.config.model_type}, {all_parameters})",
                "reads memory with": f"{self._reading} ({own_parameters} of its own)",
                "segment": counted(config.segment_tokens, "token"),
                "memory": f"{counted(config.memory_tokens, 'token')}, {stored:,} bytes each ({config.kv_dtype})",
                "retrieved": f"{config.top_k:,} tokens per token and head, search engine {self.search_engine}",
                "computes in": f"{self._dtype} on {backbone.device.type}",
            },
        )

    @property
    def _reading(self) -> str:
        """Name of what reads the memory, for people."""
        if self.config.reads_all_layers:
            return "every layer"
        layer = f"layer {self.sidenet.memory_layer}"
        return f"SideNet at {layer}, {counted(self.config.trained_steps, 'step') if self.trained else 'untrained'}"

    @property
    def _dtype(self) -> str:
        return str(self.backbone.dtype).removeprefix("torch.")

    def with_trained_steps(self, steps: int) -> "LongMem":
        """Return the same model, which shares all weights, with another number of steps in its configuration."""
        config = replace(self.config, trained_steps=steps)
        return LongMem(self.backbone, self.sidenet, self.tokenizer, config, self.search_engine)

    def with_shared_weights(self) -> "LongMem":
        """Return an equal model for another thread: modules of its own, and the same weights in memory.

        The tokenizer is shared, too; threads may use it at a time.
        """
        memo: dict[int, Any] = {id(self.tokenizer): self.tokenizer}
        for module in (self.backbone.model, self.sidenet):
            memo |= {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
        return LongMem(
            deepcopy(self.backbone, memo), deepcopy(self.sidenet, memo), self.tokenizer, self.config, self.search_engine
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a self-contained folder that `from_pretrained` reads. Never overwrites another model's folder."""
        save_parts(Path(folder), self.backbone, self.sidenet, self.tokenizer, self.config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload LongMem",
    ) -> str:
        """Upload the model with a model card to the Hugging Face hub, and return its URL.

        `repo_id` is `USER/NAME`, which `from_pretrained` and `--model` then take. A card that is there stays. Raises
        CheckpointError where the hub refuses or cannot be reached.
        """
        from longmem.model.hub import push_to_hub

        return push_to_hub(self, repo_id, private, token, commit_message)

    @property
    def trained(self) -> bool:
        """True where the SideNet's layers can differ from the backbone.

        Training starts with every scale at 0. The layers cannot differ then, and only a copy head changes results.
        """
        return self.sidenet.changes_backbone

    @torch.no_grad()
    def calibrate(self, text: str) -> None:
        """Set the mean keys that centred and unit keys are measured from, by reading a sample of text."""
        sequence = self.tokenizer.sequence(text)
        keys = []
        for segment in cut_segments(DocumentKey("", ""), sequence, self.config.segment_tokens):
            tokens = torch.from_numpy(np.array(segment.tokens))[None]
            keys.append(self.searched(self.run_backbone(tokens).keys[0]))
        self.sidenet.reader.calibrate(torch.cat(keys))

    def score(self, text: str, memory: DocumentMemory | None = None) -> TextScores:
        """Return the log-probability of every token of a text; see `longmem.scoring.text.score_text`."""
        return score_text(self, text, memory)

    def score_windows(self, text: str, window: int, stride: int) -> WindowScores:
        """Return the backbone's log-probability of every token in overlapping windows, as published work evaluates it.

        See `longmem.scoring.window_scores.score_windows`.
        """
        return score_windows(self, text, window, stride)

    def generate(
        self,
        prompt: str,
        memory: DocumentMemory | None = None,
        *,
        max_new_tokens: int = 50,
        sampling: Sampling | None = None,
        written: Callable[[str], None] = lambda _: None,
    ) -> str:
        """Continue a prompt with memory; returns the new text, and passes its pieces to `written` as they come.

        See `longmem.scoring.generate.generate`.
        """
        return generate(self, prompt, memory, max_new_tokens=max_new_tokens, sampling=sampling, written=written)
