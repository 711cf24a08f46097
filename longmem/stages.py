"""The three stages that a segment passes, by name; free of torch, so that a monitor or a status command stays small."""

from typing import Literal

Stage = Literal["encode", "put", "score"]
STAGES: tuple[Stage, ...] = ("encode", "put", "score")
