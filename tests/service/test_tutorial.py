# SPDX-License-Identifier: Apache-2.0
"""The tutorial of the cluster does what it says, on the cluster of the tests."""

from pathlib import Path

import pytest

from tests.tutorials import follow

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray, pytest.mark.timeout(600)]


def test_the_tutorial_of_the_cluster_does_what_it_says(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # the cluster of the tests takes the place of these; `ray stop` would end every cluster of the machine
    follow("cluster.md", tmp_path, skipped=("ray start --head", "ray stop"))
