# SPDX-License-Identifier: Apache-2.0
"""Costs in a file: they round-trip, and are refused for any setting other than the measured one."""

import json
from pathlib import Path

import pytest

from longmem.errors import ConfigError, OutputError
from pipelines.plan.costs import Cost, CostLine, RayCost, ScoreCost, UnitCosts, load_costs, save_costs

IDENTITY = {"fingerprint": {"backbone": "abc", "segment_tokens": 100}, "threads": 1}


def costs(ray: RayCost | None) -> UnitCosts:
    some = Cost(0.1, 0.2, 0.05, 7)
    return UnitCosts(
        identity=IDENTITY,
        environment={"cpu": "a CPU", "versions": {"torch": "2"}},
        segment_tokens=100,
        memory_tokens=300,
        encode=some,
        prepare=some,
        put=some,
        put_more=some,
        read=some,
        read_more=some,
        score=ScoreCost(some, CostLine(0.1, 1e-5), CostLine(0.2, 2e-5), 0.03, ((100, some), (300, some))),
        record=some,
        forget=some,
        tokenise_s=1e-6,
        load_s=1.5,
        block_bytes=10,
        state_bytes=20,
        window_bytes=30,
        store_overhead=1.04,
        record_bytes=40,
        process_bytes=50,
        worker_bytes=5,
        ray=ray,
    )


RAY = RayCost(Cost(0.02, 0.01), 9.0, 1, 2, 3, 4)


@pytest.mark.parametrize("ray", [None, RAY])
def test_costs_come_back_as_they_were(ray: RayCost | None, tmp_path: Path) -> None:
    save_costs(costs(ray), tmp_path / "costs.json")
    assert load_costs(tmp_path / "costs.json", IDENTITY, with_ray=ray is not None) == costs(ray)


def test_another_model_is_refused_with_both_sides(tmp_path: Path) -> None:
    save_costs(costs(RAY), tmp_path / "costs.json")
    other = {"fingerprint": {"backbone": "xyz", "segment_tokens": 100}, "threads": 2}
    with pytest.raises(ConfigError, match=r"fingerprint\.backbone: 'abc' != 'xyz'; threads: 1 != 2"):
        load_costs(tmp_path / "costs.json", other, with_ray=True)


def test_costs_without_ray_are_refused_for_pools(tmp_path: Path) -> None:
    save_costs(costs(None), tmp_path / "costs.json")
    with pytest.raises(ConfigError, match="holds no costs of Ray"):
        load_costs(tmp_path / "costs.json", IDENTITY, with_ray=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "was not written by"),
        ("[]", "not written by this version"),
        ('{"version": 99}', "not written by this version"),
        ('{"version": 4, "encode": {}}', "damaged"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_costs(tmp_path / "costs.json", IDENTITY, with_ray=False)


def test_a_missing_field_is_damage(tmp_path: Path) -> None:
    save_costs(costs(RAY), tmp_path / "costs.json")
    values = json.loads((tmp_path / "costs.json").read_text())
    del values["state_bytes"]
    (tmp_path / "costs.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="state_bytes"):
        load_costs(tmp_path / "costs.json", IDENTITY, with_ray=True)


def test_a_place_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose another --save-costs"):
        save_costs(costs(RAY), tmp_path / "missing" / "costs.json")
    with pytest.raises(ConfigError, match="cannot read --costs"):
        load_costs(tmp_path / "missing.json", IDENTITY, with_ray=True)
