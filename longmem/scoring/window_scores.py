# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a text under the backbone alone, read in overlapping windows (`evaluation_window`)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from longmem.dtypes import to_array
from longmem.model.forward import SegmentModel, require_finite
from longmem.scoring.evaluation_window import EvaluationWindow, check_window, check_window_fits, cut_windows
from longmem.wording import counted


@dataclass(frozen=True, repr=False)
class WindowScores:
    """Log-probabilities (natural log) of a text's tokens under the backbone in overlapping windows."""

    logprobs: Float32[np.ndarray, " targets"]
    num_unscored_tokens: int
    """1 when the tokenizer has no start token, so that the first token had nothing to be predicted from."""
    num_windows: int

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-probability per token; NaN when no token was predicted."""
        return float(np.exp(-np.mean(self.logprobs, dtype=np.float64))) if len(self.logprobs) else float("nan")

    def __repr__(self) -> str:
        return (
            f"WindowScores({counted(len(self.logprobs), 'token')} in {counted(self.num_windows, 'window')}, "
            f"perplexity {self.perplexity:,.3f})"
        )


@torch.no_grad()
def score_window(model: SegmentModel, window: EvaluationWindow, name: str) -> Float32[np.ndarray, " targets"]:
    """Return the backbone's log-probability of every target. One forward; only scored positions pass the head.

    `name` is that of the document, for messages. Raises NumericError.
    """
    backbone = model.backbone
    hidden = backbone.run(torch.from_numpy(np.array(window.tokens))[None])[0, -len(window.targets) :]
    logprobs = backbone.target_logprobs(hidden, torch.from_numpy(np.array(window.targets)))
    where = f"{name} evaluation window {window.index}: the backbone's log-probabilities"
    require_finite(logprobs, where, "check the backbone's weights")
    return to_array(logprobs)


def score_windows(model: SegmentModel, text: str, window: int, stride: int) -> WindowScores:
    """Score a text window by window, with the start token in front where the tokenizer has one.

    Raises ConfigError (stride beyond the window, window beyond the backbone's positions), DocumentError (no tokens),
    NumericError.
    """
    check_window(window, stride)
    check_window_fits(window, model.backbone.max_tokens, model.backbone.name)
    sequence = model.tokenizer.sequence(text)
    parts = [score_window(model, each, "text") for each in cut_windows(sequence, window, stride)]
    return WindowScores(
        logprobs=np.concatenate([np.empty(0, np.float32), *parts]),
        num_unscored_tokens=int(model.tokenizer.start_token is None),
        num_windows=len(parts),
    )
