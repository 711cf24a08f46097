# SPDX-License-Identifier: Apache-2.0
"""Jobs of requests, on a service and on workers of their own: the tables that one process gives."""

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from actors.config import ClusterShape
from longmem.model.source import ModelSource
from pipelines.job.service import ServiceChoice
from tests.jobs import SPECS, Inputs, write_inputs

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]

ICL = ("items.parquet", "grid.parquet", "demonstrations.parquet", "examples.parquet")
TABLES = {"icl": ICL, "suffix": ("items.parquet",), "probe": ("trials.parquet",)}


@pytest.fixture(scope="module")
def inputs(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    """Every job reads with the model of the service."""
    threads = torch.get_num_threads()
    yield replace(write_inputs(tmp_path_factory.mktemp("inputs")), model=source, small=source)
    torch.set_num_threads(threads)


def tables(kind: str, inputs: Inputs, out: Path, **fields: Any) -> dict[str, bytes]:
    run_it, spec = SPECS[kind](inputs, out)
    assert run_it(replace(spec, **fields), Console(file=StringIO())) is not None
    return {name: (out / name).read_bytes() for name in TABLES[kind]}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_those_of_one_process(service: str, inputs: Inputs, tmp_path: Path, kind: str) -> None:
    here = tables(kind, inputs, tmp_path / "here")
    assert tables(kind, inputs, tmp_path / "service", service=ServiceChoice(name=service)) == here
    # icl on workers of its own is compared in tests/end_to_end/test_icl_whole.py
    if kind != "icl":
        # that the number of workers changes nothing is checked in tests/contract/test_executor.py
        shape = ClusterShape(encoders=1, readers=0)
        assert tables(kind, inputs, tmp_path / "workers", cluster=shape) == here
        assert not (tmp_path / "workers" / "memory.lance").exists()
