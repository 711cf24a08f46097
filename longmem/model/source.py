# SPDX-License-Identifier: Apache-2.0
"""Location of a model and options to open it: small enough to send to every worker, which then opens its own copy.

Imports torch and transformers only to open a model, so that a driver starts its workers before it imports them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longmem.config import Dtype, LongMemConfig, with_fitting_sizes
from longmem.errors import ConfigError
from longmem.model.folders import backbone_of, checkpoint_folder, is_checkpoint, read_config
from longmem.stored_format import token_bytes
from longmem.types import Fingerprint

if TYPE_CHECKING:
    from longmem.backbone.tokenizer import Tokenizer
    from longmem.model.longmem import LongMem

REFERENCE_MODEL = Path(__file__).parents[1] / "reference_model"
"""Folder of the model that ships with the package."""


def reference_settings(*names: str) -> dict[str, Any]:
    """Return fields of the reference model's configuration."""
    config = read_config(REFERENCE_MODEL)["longmem"]
    return {name: config[name] for name in names}


@dataclass(frozen=True)
class ModelDescription:
    """Properties of a model that a job needs without loading it."""

    name: str
    family: str
    trained: bool
    num_parameters: int
    """Number of parameters of backbone and SideNet; shared ones count once."""
    fingerprint: Fingerprint
    sidenet: str
    """Hash of the SideNet's weights as loaded."""
    segment_bytes: int
    """Bytes of taps and block of one full segment, held by an encoded segment until it is scored and stored."""
    settings: dict[str, Any]
    """Fields of the resolved LongMemConfig."""
    max_tokens: int | None
    """Longest context of the backbone in tokens; None without a limit."""
    start_token: int | None
    """Token before every document; None if the tokenizer has none."""
    gives_spans: bool
    """True if the tokenizer gives the characters of each token."""


@dataclass(frozen=True)
class ModelSource:
    """Source of a LongMem folder, or of a plain Hugging Face backbone (then with a new, untrained SideNet)."""

    source: str
    dtype: Dtype = "float32"
    device: str = "cpu"
    search: str = "auto"
    """Search engine; a job on several machines names one, so that all of them use it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of LongMemConfig to set or replace."""
    adapter: str | None = None
    """Folder of a PEFT adapter to merge into a plain backbone."""

    def on_gpu(self) -> "ModelSource":
        """Return a source of this model that opens it on the worker's GPU."""
        return replace(self, device="cuda")

    def open(self) -> "LongMem":
        """Load the model. Raises ModelError and its kinds, ConfigError."""
        from longmem.model.longmem import LongMem

        if not is_checkpoint(self.source):
            return LongMem.from_backbone(
                self.source,
                dtype=self.dtype,
                device=self.device,
                search=self.search,
                adapter=self.adapter,
                **self.settings,
            )
        refuse_adapter(self.source, self.adapter)
        return LongMem.from_pretrained(
            self.source, dtype=self.dtype, device=self.device, search=self.search, **self.settings
        )

    def config(self) -> LongMemConfig:
        """Return the configuration that the model will have, without loading its weights.

        Raises CheckpointError, ConfigError.
        """
        from longmem.backbone.loading import load_config, max_tokens_of
        from longmem.model.checkpoint import refuse_other_layers, settings_of

        if is_checkpoint(self.source):
            saved = settings_of(read_config(checkpoint_folder(self.source)))
            refuse_other_layers(self.source, saved, self.settings)
            return LongMemConfig.from_dict(saved | self.settings)
        LongMemConfig.from_dict(self.settings)
        positions = max_tokens_of(load_config(self.source, self.adapter))
        return LongMemConfig.from_dict(with_fitting_sizes(self.settings, positions))

    def open_tokenizer(self) -> "Tokenizer":
        """Open only the tokenizer, so that a driver can cut documents into segments without loading weights."""
        from longmem.backbone.loading import load_config
        from longmem.backbone.tokenizer import Tokenizer

        checkpoint = is_checkpoint(self.source)
        folder = backbone_of(self.source) if checkpoint else self.source
        saved = read_config(checkpoint_folder(self.source))["longmem"] if checkpoint else {}
        rule = ("special_tokens", LongMemConfig.special_tokens)
        special_tokens = self.settings.get(rule[0], saved.get(*rule))
        return Tokenizer(folder, load_config(folder, self.adapter).vocab_size, special_tokens)


def refuse_adapter(source: str, adapter: str | None) -> None:
    """Raise ConfigError for an adapter to a LongMem folder, whose SideNet was trained on the backbone without it."""
    if adapter is not None:
        backbone = backbone_of(source)
        raise ConfigError(
            f"an adapter changes the backbone that the SideNet of {source} was trained on; give --model {backbone} "
            f"with --adapter {adapter}, and train or fit a SideNet on both"
        )


def describe(model: "LongMem") -> ModelDescription:
    """Return the description of a loaded model."""
    from longmem.backbone.loading import hash_weights

    config, shape = model.config, model.backbone.shape
    compute_bytes = model.backbone.dtype.itemsize
    stored_bytes = token_bytes(model.fingerprint.stored_heads, shape.head_dim, config.kv_dtype)
    per_token = model.num_state_parts * model.backbone.hidden_size * compute_bytes + stored_bytes + 4
    own = sum(parameter.numel() for parameter in model.sidenet.parameters())
    return ModelDescription(
        name=model.backbone.name,
        family=model.backbone.model.config.model_type,
        trained=model.trained,
        num_parameters=own + sum(parameter.numel() for parameter in model.backbone.model.parameters()),
        fingerprint=model.fingerprint,
        sidenet=hash_weights(model.sidenet),
        segment_bytes=per_token * config.segment_tokens,
        settings=vars(config) | {"memory_layer": model.sidenet.memory_layer},
        max_tokens=model.backbone.max_tokens,
        start_token=model.tokenizer.start_token,
        gives_spans=model.tokenizer.gives_spans,
    )
