"""What every test shares: one thread, no network, derandomised Hypothesis, and small real backbones saved once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from longmem.model import LongMem
from longmem.testing import save_small_backbone, small_longmem

torch.set_num_threads(1)

settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture(scope="session")
def backbones_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small backbones of this session are saved, laid out as `small_longmem` expects them."""
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="session")
def small_backbone(backbones_folder: Path) -> Callable[[str], Path]:
    """Folder of the small backbone of a family; saved on first use, never changed (copy it to damage it)."""

    def folder(family: str) -> Path:
        path = backbones_folder / f"{family}-0"
        if not path.exists():
            save_small_backbone(path, family)
        return path

    return folder


@pytest.fixture(scope="session")
def small_model(backbones_folder: Path, small_backbone: Callable[[str], Path]) -> Callable[..., LongMem]:
    """A fresh LongMem on the small backbone of a family: `small_model(family, unsettled=..., **settings)`."""

    def model(family: str = "llama", **settings: Any) -> LongMem:
        small_backbone(family)
        return small_longmem(backbones_folder, family, **settings)

    return model
