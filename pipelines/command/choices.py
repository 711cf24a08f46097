# SPDX-License-Identifier: Apache-2.0
"""Names that options of several commands choose from."""

from typing import Literal

ComputeDtype = Literal["float32", "bfloat16"]
"""Type in which the backbone and the SideNet compute."""
JobDtype = Literal["float32", "bfloat16", "auto"]
"""Compute type of a job; auto chooses by measurement."""
SearchEngine = Literal["auto", "native", "torch", "faiss", "ivf"]
"""Engine that finds chunks in the window of a reader; auto chooses one that this machine can run."""
Retention = Literal["window", "document", "forever"]
"""Lifetime of stored blocks: while a window may reach them, while their document is scored, or after the job too."""
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
"""Experiment tracker of a training."""
