# SPDX-License-Identifier: Apache-2.0
"""Model sizes of `longmem pretrain`: one for a CPU, one for a GPU."""

from dataclasses import dataclass

from longmem.backbone.new import LlamaShape
from longmem.errors import ConfigError
from longmem.pretraining.config import PretrainingConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Shape of a backbone and its training settings, whose fields can be overridden."""

    shape: LlamaShape
    config: PretrainingConfig

    def __post_init__(self) -> None:
        if self.config.window_tokens > self.shape.max_positions:
            raise ConfigError(
                f"window_tokens must be at most the {self.shape.max_positions} positions of the model, "
                f"got {self.config.window_tokens}"
            )


PRESETS = {
    # the backbone of the reference model, 8.4 million parameters
    "8m": Preset(
        shape=LlamaShape(
            layers=8,
            hidden_size=256,
            heads=4,
            head_dim=64,
            intermediate_size=688,
            vocab_size=8192,
            max_positions=2048,
        ),
        config=PretrainingConfig(window_tokens=512, batch_tokens=8192, micro_rows=4, learning_rate=3e-3, passes=1.0),
    ),
    # 126 million parameters; four passes, because 100 MB of text is little for this size, and more passes gain little
    # (Muennighoff et al. 2023, arXiv:2305.16264)
    "100m": Preset(
        shape=LlamaShape(
            layers=16,
            hidden_size=768,
            heads=12,
            head_dim=64,
            intermediate_size=2048,
            vocab_size=16384,
            max_positions=2048,
        ),
        config=PretrainingConfig(
            window_tokens=1024, batch_tokens=131_072, micro_rows=32, learning_rate=1e-3, passes=4.0
        ),
    ),
}


def preset_of(size: str) -> Preset:
    """Return a preset. Raises ConfigError for an unknown size, with the known ones."""
    if size not in PRESETS:
        raise ConfigError(f"size must be one of {', '.join(PRESETS)}, got {size!r}")
    return PRESETS[size]
