# SPDX-License-Identifier: Apache-2.0
"""The spin count of torch's threads is set before torch is loaded, in processes of their own."""

import os
import subprocess
import sys

import pytest

from longmem.system.omp import SPINS

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SAY = "import os, sys, {package}; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize("package", ["pipelines", "benchmarks"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "a number", "a policy"],
)
def test_spins_are_few_unless_told_otherwise(package: str, given: dict[str, str], expected: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    said = subprocess.run(
        [sys.executable, "-c", SAY.format(package=package)],
        env=environment | given,
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.split() == ["False", str(expected)]
