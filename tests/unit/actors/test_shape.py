# SPDX-License-Identifier: Apache-2.0
"""ClusterShape refuses sizes that cannot work, and sums up the resources requested from Ray."""

import subprocess
import sys

import pytest

from actors.config import ClusterShape
from longmem.errors import ConfigError


@pytest.mark.parametrize("name", ["encoders", "stores", "threads"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_pool_needs_an_actor(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be at least 1, got {value}"):
        ClusterShape(**{name: value})


def test_without_readers_nothing_is_scored_and_no_core_is_kept_for_it() -> None:
    shape = ClusterShape(encoders=2, readers=0, threads=2)
    assert (shape.num_cpus, shape.num_workers) == (4, 2)
    assert ClusterShape(encoders=2, readers=0, threads=2, elastic=True).min_cpus == 2
    with pytest.raises(ConfigError, match="readers must be at least 0, got -1"):
        ClusterShape(readers=-1)


def test_the_smallest_shape_is_the_default() -> None:
    shape = ClusterShape()
    assert (shape.encoders, shape.readers, shape.stores, shape.threads) == (1, 1, 1, 1)
    assert (shape.address, shape.num_cpus, shape.num_gpus) == ("auto", 2, 0.0)


def test_cpus_are_threads_of_encoders_and_readers() -> None:
    assert ClusterShape(encoders=2, readers=3, stores=5, threads=4).num_cpus == 20


def test_gpus_are_shares_of_encoders_and_readers() -> None:
    assert ClusterShape(encoders=2, readers=3, encoder_gpus=1.0, reader_gpus=0.5).num_gpus == 3.5


def test_a_shape_cannot_change() -> None:
    with pytest.raises(AttributeError):
        ClusterShape().encoders = 2  # type: ignore[misc]


def test_a_command_line_is_checked_without_ray() -> None:
    code = "import sys, actors.config; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
