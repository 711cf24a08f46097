# SPDX-License-Identifier: Apache-2.0
"""One Ray cluster for every test of a session that requests it: `pytest_plugins = ["tests.ray_cluster"]`."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

# before Ray is imported anywhere: no usage pings, no token file in the home folder, no GPU environment for CPU workers
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import pytest

NUM_CPUS = 8
"""Number of logical CPUs, not cores: enough for the largest pools of these tests."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Initialise Ray; `actors.cluster.connect` joins it and never shuts it down."""
    import ray

    assert not ray.is_initialized(), "another test left Ray running"
    # a short path, because it becomes the name of a Unix socket; its own, so that no other cluster is joined
    folder = tempfile.mkdtemp(prefix="lm-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        object_store_memory=2**28,
        include_dashboard=True,  # the state API, which lists actors and their processes, is part of the dashboard
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
        # tests wait for metrics, which are exported every ten seconds by default
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
