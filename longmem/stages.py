# SPDX-License-Identifier: Apache-2.0
"""Names of the three stages of a segment. Does not import torch, so that monitors and status commands stay small."""

from typing import Literal

Stage = Literal["encode", "put", "score"]
STAGES: tuple[Stage, ...] = ("encode", "put", "score")
