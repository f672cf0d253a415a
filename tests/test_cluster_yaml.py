"""cluster.yaml: what Ray's own schema says of it, and what our jobs need of it."""

import copy
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.data import Dataset

from patchlake.pipeline.cluster import nodes, on_ray
from patchlake.pipeline.cluster.runner import Pipeline
from patchlake.pipeline.reading.fragments import Fragment, Fragments

ROOT = Path(__file__).parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TYPES = CLUSTER["available_node_types"]
WORKERS = {name: node for name, node in TYPES.items() if name != CLUSTER["head_node_type"]}


def validate(config: dict[str, Any]) -> None:
    """As `ray up` does before it asks AWS for anything."""
    validate_config(prepare_config(copy.deepcopy(config)))


def is_spot(node: dict[str, Any]) -> bool:
    return node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}


def test_it_is_what_ray_expects():
    validate(CLUSTER)


def misspell_a_setting(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")


def misspell_a_node_setting(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu-spot"]["max_worker"] = 4


def name_no_such_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "haed"


def give_half_a_gpu(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu-spot"]["resources"]["GPU"] = 0.5


@pytest.mark.parametrize(
    "damage", [misspell_a_setting, misspell_a_node_setting, name_no_such_head, give_half_a_gpu]
)
def test_a_typo_fails(damage: Callable[[dict[str, Any]], None]):
    config = copy.deepcopy(CLUSTER)
    damage(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, RuntimeError)):
        validate(config)


def test_the_provider_has_no_typo():
    # Ray's schema lets anything pass there, and AWS's answer would come after the first instances.
    known = {"type", "region", "availability_zone", "cache_stopped_nodes"}
    assert set(CLUSTER["provider"]) <= known
    launch = {
        *("InstanceType", "ImageId", "IamInstanceProfile", "InstanceMarketOptions"),
        *("BlockDeviceMappings", "MetadataOptions"),
    }
    for node in TYPES.values():
        assert set(node["node_config"]) <= launch
    zones = CLUSTER["provider"]["availability_zone"].split(",")
    assert all(zone.startswith(CLUSTER["provider"]["region"]) for zone in zones)


def test_every_image_has_the_ray_and_a_python_of_pyproject():
    docker = [CLUSTER["docker"], *(node.get("docker", {}) for node in TYPES.values())]
    images = [value for some in docker for key, value in some.items() if key.endswith("image")]
    assert len(images) == 3
    tags = [re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)-(cpu|gpu)", name) for name in images]
    assert all(tags), images
    (ray,) = {tag[1] for tag in tags if tag}
    (minor,) = {tag[2] for tag in tags if tag}
    needed = [Requirement(text) for text in PROJECT["dependencies"]]
    (pin,) = [requirement.specifier for requirement in needed if requirement.name == "ray"]
    assert pin.contains(ray)
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")


def test_the_head_runs_no_task_and_is_no_worker():
    head = TYPES[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_spot_gpus_come_first_and_on_demand_ones_stand_in_for_them():
    gpus = {name: node for name, node in WORKERS.items() if node["resources"].get("GPU")}
    spot = [node for node in gpus.values() if is_spot(node)]
    on_demand = [node for node in gpus.values() if not is_spot(node)]
    assert len(spot) == len(on_demand) == 1
    assert spot[0]["priority"] > on_demand[0]["priority"]
    # Of equal resources: `nodes.offered` counts them once.
    assert spot[0]["resources"] == on_demand[0]["resources"]
    assert spot[0]["labels"] == {"market": "spot"}


def test_limits_hold_and_idle_workers_go():
    assert CLUSTER["max_workers"] == sum(node["max_workers"] for node in WORKERS.values())
    assert all(node["min_workers"] == 0 for node in WORKERS.values())
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 15
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_what_each_stage_asks_for_some_node_has(monkeypatch: pytest.MonkeyPatch):
    def offered(resource: str) -> int:
        return sum(n["resources"].get(resource, 0) * n["max_workers"] for n in WORKERS.values())

    built: list[Dataset] = []

    def keep(dataset: Dataset) -> Iterator[pa.Table]:
        built.append(dataset)
        return iter(())

    monkeypatch.setattr(nodes, "offered", offered)
    monkeypatch.setattr(on_ray, "_rows", keep)
    plan = Fragments.of([Fragment("a.parquet", (0,), 0, "tile", 1, "v1", "key")])
    assert not list(on_ray.RayRunner().run(plan.table, Pipeline(len, Nothing(), len)))
    requests = [operator.ray_remote_args for operator in asking(built[0])]
    named = [{"CPU": 1, nodes.DECODE: 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1}]
    assert [as_resources(request) for request in requests] == named
    for request in named:
        fitting = [n for n in WORKERS.values() if request.items() <= at_most(n, request).items()]
        assert fitting, request


class Nothing:
    """Stands for the settings of a stage that is never started."""

    def start(self, _threads: int) -> Callable[[Any], Any]:
        raise AssertionError


def asking(dataset: Dataset) -> list[Any]:
    """The operators that ask for resources, first to last."""
    operators = [dataset._logical_plan.dag]
    while operators[-1].input_dependencies:
        operators.append(operators[-1].input_dependencies[0])
    return [operator for operator in reversed(operators) if hasattr(operator, "ray_remote_args")]


def as_resources(request: dict[str, Any]) -> dict[str, float]:
    found = {"CPU": request.get("num_cpus"), "GPU": request.get("num_gpus")}
    return {k: v for k, v in {**found, **(request.get("resources") or {})}.items() if v}


def at_most(node: dict[str, Any], request: dict[str, float]) -> dict[str, float]:
    """What a node can give of a request."""
    return {name: min(node["resources"].get(name, 0), most) for name, most in request.items()}


def test_decoding_stays_off_the_gpu_nodes():
    for node in WORKERS.values():
        decodes = node["resources"].get(nodes.DECODE, 0)
        assert decodes == (0 if node["resources"].get("GPU") else node["resources"]["CPU"])


def test_no_key_is_in_it_and_every_node_has_a_role():
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"AKIA|aws_(access|secret)|ssh_private_key|PRIVATE KEY", text, re.I)
    assert all(node["node_config"]["IamInstanceProfile"] for node in TYPES.values())


def test_caches_logs_and_spilled_objects_are_on_the_fast_disk():
    options = " ".join(CLUSTER["docker"]["run_options"])
    (disk,) = re.findall(r"--volume \S+:(\S+)", options)
    assert f"--env PATCHLAKE_CACHE={disk}/" in options
    assert f"--env HF_HOME={disk}/" in options
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = CLUSTER[commands][-1]
        assert f"--temp-dir={disk}/" in started
        assert f"--object-spilling-directory={disk}/" in started


def test_the_cluster_wants_a_token_and_its_dashboard_is_not_on_the_network():
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in CLUSTER["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][-1]
