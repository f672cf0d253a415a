"""The nodes of a Ray cluster: their resources now, those that may be started, and their names.

A cluster that `ray up` has just started, or that was idle overnight, is only a head without CPUs.
What a job can use then is not what is there, but what the autoscaler may start. Ray 2.60 does not
say what that is (its `get_cluster_config` is left for others to fill). But `ray up` leaves its
configuration on the head, and there `ray job submit` runs the driver.

Nodes for decode are marked by a custom resource. Ray's labels would do, too, but are in beta; the
custom resource is older, and everything that schedules counts it like CPUs.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

from patchlake.pipeline.record.runs import NODE_VARIABLE

# The custom resource of the CPU nodes that decode; a node has as many of it as it has CPUs.
DECODE = "decode"

# A resource that Ray gives to the head, and only to the head.
_HEAD = "node:__internal_head__"
_CONFIGURATION = Path("~/ray_bootstrap_config.yaml")
# The label with the node type, of nodes that `ray up` has started.
_TYPE = "ray.io/node-group"

# What `ray.nodes` returns for a node: names, resources, labels.
_Node = Mapping[str, Any]


def present(resource: str) -> int:
    """Return how much of a resource the nodes that are there now have."""
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def stores() -> list[int]:
    """Return the size of the object store, in bytes, of each node with CPUs."""
    every = (node["Resources"] for node in _nodes())
    return [int(own.get("object_store_memory", 0)) for own in every if own.get("CPU")]


def offered(resource: str) -> int:
    """Return how much of a resource there can be once the autoscaler has started all its nodes.

    It is never less than what is there now. Of node types with equal resources one replaces the
    other, as on-demand nodes replace spot nodes, so that the larger number counts, not the sum.
    """
    numbers: dict[frozenset[tuple[str, int]], int] = {}
    for resources, most in _node_types():
        kind = frozenset(resources.items())
        numbers[kind] = max(numbers.get(kind, 0), most)
    configured = sum(dict(kind).get(resource, 0) * most for kind, most in numbers.items())
    return max(present(resource), configured)


def decode_request() -> dict[str, float] | None:
    """Return the resource that a decode task requests beside a CPU, to stay on decode nodes.

    None in a cluster without GPUs, which has no nodes to be kept free of decode. There, the infer
    actors could take the last CPU of the decode nodes.
    """
    return {DECODE: 1} if offered("GPU") and offered(DECODE) else None


def not_an_idle_head() -> dict[str, str]:
    """Return the label selector that keeps work without a CPU request off a head without CPUs.

    It is empty while the head is alone, because no node would be started for work that requests
    nothing.
    """
    head = _head()
    if head is None or head["Resources"].get("CPU") or len(_nodes()) == 1:
        return {}
    return {"ray.io/node-id": f"!{head['NodeID']}"}


def announce() -> None:
    """Set the variable from which `runs.here` reads the node that this worker process is on."""
    if NODE_VARIABLE not in os.environ:
        own = ray.get_runtime_context().get_node_id()
        names = {node["NodeID"]: node["NodeName"] for node in _nodes()}
        os.environ[NODE_VARIABLE] = names.get(own) or own


def _node_types() -> Iterable[tuple[Mapping[str, int], int]]:
    """Yield the resources and the largest number of nodes of each worker type of `ray up`."""
    path, head = _CONFIGURATION.expanduser(), _head()
    if head is None or not path.exists():
        return
    configuration = yaml.safe_load(path.read_text())
    # Another Ray on the head's machine is not the cluster that the file describes.
    if head["Labels"].get(_TYPE) != configuration["head_node_type"]:
        return
    for name, described in configuration["available_node_types"].items():
        if name != configuration["head_node_type"]:
            most = described.get("max_workers", configuration["max_workers"])
            yield described["resources"], most


def _head() -> _Node | None:
    return next((node for node in _nodes() if _HEAD in node["Resources"]), None)


def _nodes() -> list[_Node]:
    nodes: list[_Node] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
