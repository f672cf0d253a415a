"""What the nodes of a Ray cluster have, may have, and are called.

A cluster that `ray up` has just started, or that was idle overnight, is a head without CPUs and
nothing else: what a job can use is not what is there, but what the autoscaler may start. Ray 2.60
does not say (its `get_cluster_config` is for others to fill), but `ray up` leaves its configuration
on the head, where `ray job submit` runs the driver.

Nodes are told apart by a custom resource: older than Ray's labels, which are in beta, and counted
like CPUs by everything that schedules.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

from patchlake.pipeline.record.runs import NODE_VARIABLE

# CPU nodes that offer it decode; a node has as many of it as CPUs.
DECODE = "decode"

# What Ray gives the head, and only the head.
_HEAD = "node:__internal_head__"
_CONFIGURATION = Path("~/ray_bootstrap_config.yaml")
# The label by which a node that `ray up` has started tells its type.
_TYPE = "ray.io/node-group"

# As `ray.nodes` tells of a node: names, resources, labels.
_Node = Mapping[str, Any]


def present(resource: str) -> int:
    """Return how much of a resource the nodes have that are there now."""
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def stores() -> list[int]:
    """Return the bytes of the object store of each node with CPUs."""
    every = (node["Resources"] for node in _nodes())
    return [int(own.get("object_store_memory", 0)) for own in every if own.get("CPU")]


def offered(resource: str) -> int:
    """Return how much of a resource there is, or may be once the autoscaler has started nodes.

    Node types of equal resources stand in for one another, as on-demand nodes do for spot nodes:
    the larger number counts, not the sum.
    """
    numbers: dict[frozenset[tuple[str, int]], int] = {}
    for resources, most in _node_types():
        kind = frozenset(resources.items())
        numbers[kind] = max(numbers.get(kind, 0), most)
    configured = sum(dict(kind).get(resource, 0) * most for kind, most in numbers.items())
    return max(present(resource), configured)


def decode_request() -> dict[str, float] | None:
    """Return what decode asks for beside a CPU, so that it stays on nodes that are meant for it.

    Without GPUs there are no nodes to keep free of it, and infer could take the last CPU of those.
    """
    return {DECODE: 1} if offered("GPU") and offered(DECODE) else None


def not_an_idle_head() -> dict[str, str]:
    """Return the label selector of what asks for no CPU and is not meant for a head without any.

    None while the head is alone: no node would be started for what asks for nothing.
    """
    head = _head()
    if head is None or head["Resources"].get("CPU") or len(_nodes()) == 1:
        return {}
    return {"ray.io/node-id": f"!{head['NodeID']}"}


def announce() -> None:
    """Tell the stages of this worker process which node they run on: see `runs.here`."""
    if NODE_VARIABLE not in os.environ:
        own = ray.get_runtime_context().get_node_id()
        names = {node["NodeID"]: node["NodeName"] for node in _nodes()}
        os.environ[NODE_VARIABLE] = names.get(own) or own


def _node_types() -> Iterable[tuple[Mapping[str, int], int]]:
    """Yield resources and largest number of each type of worker that `ray up` was told of."""
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
