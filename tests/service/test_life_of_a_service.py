# SPDX-License-Identifier: Apache-2.0
"""A service from `up` to `down`: any process finds it by name, a half-started one is detected, `down` leaves
nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.config import ClusterShape
from longmem.errors import ClusterError, ConfigError, ModelError
from longmem.model.source import ModelSource
from longmem.store.config import StoreSettings
from pipelines.cli import app

pytest_plugins = ["tests.ray_cluster"]
pytestmark = [pytest.mark.thorough, pytest.mark.ray]


def invoke(*arguments: str) -> tuple[int, str]:
    """Return exit code and all output."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments), prog_name="longmem")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


def named(prefix: str) -> list[str]:
    """Return the named actors of the cluster that are not dead."""
    import ray

    return sorted(each["name"] for each in ray.util.list_named_actors(True) if each["name"].startswith(prefix))


def test_up_status_down(ray_cluster: None, source: ModelSource, tmp_path: Path) -> None:
    import ray

    up = ["service", "up", "--name", "cli", "--model", source.source, "--store", str(tmp_path / "m"), "--threads", "1"]
    code, said = invoke(*up)
    assert code == 0, said
    assert f"service cli is up: {source.source}, memory in {tmp_path / 'm'}" in said
    workers = [f"longmem-service-cli-{kind}-0" for kind in ("encoder", "sidenet", "store")]
    assert named("longmem-service-cli") == ["longmem-service-cli", *workers]

    # the actor that describes the service is restarted in its former state
    registry = ray.get_actor("longmem-service-cli", namespace="longmem")
    ray.kill(registry, no_restart=False)

    code, said = invoke(*up)
    assert code == 0
    assert "runs already with these settings, since 20" in said
    code, said = invoke(*up, "--readers", "2")
    assert code == 2
    assert "runs with other settings (asked for != running): readers: 2 != 1; take it down first" in said

    code, said = invoke("service", "status")
    assert code == 0
    assert [worker for worker in workers if f"{worker}: alive" not in said] == [], said
    assert source.source in said
    code, said = invoke("service", "down", "--name", "cli")
    assert (code, named("longmem-service-cli")) == (0, [])
    assert "service cli is down; 4 actors have ended" in said
    for command in ("status", "down"):
        code, said = invoke("service", command, "--name", "cli")
        assert code == 2
        assert "there is no service 'cli' on this cluster" in said
        assert "longmem service up" in said


def test_a_start_that_was_interrupted_is_recognised_and_can_be_taken_down(
    ray_cluster: None, source: ModelSource, tmp_path: Path
) -> None:
    from actors.service.registry import Service, find_service, list_services, start_service, stop_service
    from actors.workers.start import start_workers

    service = Service(name="half", source=source, store=StoreSettings(str(tmp_path / "m")), shape=ClusterShape())
    start_workers(source, service.store, service.shape, "longmem-service-half", detached=True)
    for ask in (lambda: start_service(service), lambda: find_service("half")):
        with pytest.raises(ClusterError, match=r"its start was interrupted.*longmem service down --name half"):
            ask()
    (state,) = [each for each in list_services() if each.name == "half"]
    assert (state.service, len(state.workers)) == (None, 3)
    assert len(stop_service("half")) == 3
    assert named("longmem-service-half") == []


def test_a_start_that_fails_leaves_nothing(ray_cluster: None, tmp_path: Path) -> None:
    from actors.service.registry import Service, start_service

    source = ModelSource(str(tmp_path / "no-such-model"))
    service = Service(name="failing", source=source, store=StoreSettings(str(tmp_path / "m")), shape=ClusterShape())
    with pytest.raises(ModelError, match="no-such-model"):
        start_service(service)
    assert named("longmem-service-failing") == []
    with pytest.raises(ClusterError, match="needs 100 CPU"):
        start_service(Service(name="failing", source=source, store=StoreSettings("m"), shape=ClusterShape(encoders=99)))


@pytest.mark.parametrize("name", ["", "a/b", "-a", "a b", "x-encoder-0"])
def test_names_that_cannot_be_one(name: str, source: ModelSource) -> None:
    from actors.service.registry import Service

    with pytest.raises(ConfigError, match="name must be"):
        Service(name=name, source=source, store=StoreSettings("m"), shape=ClusterShape())


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_a_service_needs_a_cluster_that_outlives_the_command(command: str) -> None:
    code, said = invoke("service", command, "--address", "local")
    assert code == 2
    assert "outlives this command, not --address local; start one with `ray start --head`" in said
