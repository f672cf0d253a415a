"""What a cluster offers: what is there, and what `ray up` was told that it may start."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from patchlake.pipeline.cluster import nodes

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's copy of cluster.yaml, as `ray up` leaves it."""
    (tmp_path / "ray_bootstrap_config.yaml").write_text((ROOT / "cluster.yaml").read_text())
    monkeypatch.setenv("HOME", str(tmp_path))


def alone(label: str) -> list[dict[str, Any]]:
    resources = {"node:__internal_head__": 1.0}
    return [{"NodeID": "a", "Resources": resources, "Labels": {"ray.io/node-group": label}}]


@pytest.mark.slow
def test_one_machine_offers_what_it_has():
    assert nodes.offered("CPU") == nodes.present("CPU") == 3
    assert nodes.offered("GPU") == nodes.offered(nodes.DECODE) == 0
    assert nodes.decode_request() is None
    assert nodes.not_an_idle_head() == {}


@pytest.mark.usefixtures("told")
def test_another_ray_on_the_heads_machine_is_not_the_cluster_of_the_file():
    assert nodes.offered("GPU") == 0


@pytest.mark.usefixtures("told")
def test_a_sleeping_cluster_offers_what_may_be_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nodes, "_nodes", lambda: alone("head"))
    described = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    decode, spot = described["decode"], described["gpu-spot"]
    # On-demand nodes are not added to the spot nodes that they stand in for.
    assert nodes.offered("GPU") == spot["max_workers"] * spot["resources"]["GPU"]
    assert nodes.offered(nodes.DECODE) == decode["max_workers"] * decode["resources"]["CPU"]
    assert nodes.decode_request() == {nodes.DECODE: 1}
    # Nothing would be started for what asks for nothing: the head, alone, is not avoided.
    assert nodes.not_an_idle_head() == {}


def test_a_head_without_cpus_is_avoided_where_there_are_others(monkeypatch: pytest.MonkeyPatch):
    other = {"NodeID": "b", "Resources": {"CPU": 2.0}, "Labels": {}}
    monkeypatch.setattr(nodes, "_nodes", lambda: [*alone("head"), other])
    assert nodes.not_an_idle_head() == {"ray.io/node-id": "!a"}
