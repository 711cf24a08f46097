# SPDX-License-Identifier: Apache-2.0
"""Executors of jobs in this process."""

from pathlib import Path

import pytest
import torch

from longmem.model.source import ModelSource
from longmem.store.config import StoreSettings
from longmem.testing import small_longmem
from pipelines.job.executors import start_executor


def test_a_job_in_this_process_keeps_freed_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It allocates large tensors again and again, and each new page costs a fault."""
    small_longmem(tmp_path).save_pretrained(tmp_path / "checkpoint")
    calls: list[str] = []
    monkeypatch.setattr("pipelines.job.executors.keep_freed_memory", lambda: calls.append("kept"))
    source, store = ModelSource(str(tmp_path / "checkpoint")), StoreSettings(str(tmp_path / "memory.lance"))
    with start_executor(source, store, cluster=None, threads=torch.get_num_threads()):
        assert calls == ["kept"]
