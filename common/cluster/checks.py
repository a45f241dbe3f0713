"""Whether a host can do its part, from what its agent says of it."""

from __future__ import annotations

from mlxfleet.common.cluster.agent import Facts, ModelState
from mlxfleet.common.cluster.file import FRONT, Cluster
from mlxfleet.common.cluster.plan import needed_models

FETCH_DISK_GB = 5.0
PYTHON_FIRST, PYTHON_END = (3, 11), (3, 14)
WEIGHTS_SHARE = 0.9
MACHINES = {"Darwin": ("arm64",), "Linux": ("x86_64", "aarch64", "arm64")}


def needed_ports(cluster: Cluster, host: str) -> tuple[int, ...]:
    """TCP ports that the front end listens on: HTTP, nodes, one per detokenizer."""
    if host != cluster.spec.front.host:
        return ()
    return (cluster.http_port, *cluster.link_ports)


def host_problems(cluster: Cluster, host: str, facts: Facts, version: str) -> list[str]:
    """What keeps a host from doing its part, and what to do about each; empty if nothing does."""
    found = [
        *machine_problems(facts),
        *version_problems(facts, version),
        *size_problems(cluster, host, facts),
        *(state.problem for state in facts.models.values() if state.problem),
    ]
    if facts.service_problem:
        found.append(facts.service_problem)
    front = facts.units.get(FRONT)
    if front is None or front.keeper is None:
        found += [
            f"port {port} is in use there; stop what listens, or set another in [front.settings]"
            for port in facts.ports_in_use
        ]
    nodes = [node.name for node in cluster.spec.nodes if node.host == host]
    if facts.system == "Darwin" and len(nodes) > 1:
        found.append(f"a Mac has one Metal device, so one node, and {', '.join(nodes)} are on it")
    return found


def machine_problems(facts: Facts) -> list[str]:
    """System, processor and Python."""
    found = []
    if facts.machine not in MACHINES.get(facts.system, ()):
        found.append(
            f"{facts.system} on {facts.machine}: mlxfleet runs on Macs with Apple silicon, and on"
            " Linux on x86_64 and aarch64"
        )
    if not PYTHON_FIRST <= facts.python < PYTHON_END:
        python = ".".join(map(str, facts.python))
        found.append(f"Python {python}: mlxfleet needs 3.11, 3.12 or 3.13")
    return found


def version_problems(facts: Facts, version: str) -> list[str]:
    """Every host has what this machine has."""
    if facts.version == version:
        return []
    return [f"mlxfleet {facts.version} there, {version} here; install {version} there"]


def size_problems(cluster: Cluster, host: str, facts: Facts) -> list[str]:
    """Room for models on the disk and in memory."""
    missing = [model for model, state in facts.models.items() if fetchable(state)]
    wanted_gb = cluster.spec.cluster.min_disk_gb + FETCH_DISK_GB * len(missing)
    found = []
    if facts.free_disk_gb < wanted_gb:
        what = f" to fetch {', '.join(missing)}" if missing else ""
        found.append(f"{facts.free_disk_gb:.1f} GB of disk are free, {wanted_gb:.1f} needed{what}")
    for node in cluster.spec.nodes:
        if node.host != host:
            continue
        values = cluster.node_settings(node)
        asked_gb = float(values.get("memory_gb", 0))
        if asked_gb > facts.memory_gb:
            found.append(
                f"memory_gb = {asked_gb:g} for {node.name}, and it has {facts.memory_gb:.1f} GB"
            )
        weights_gb = facts.models[node.model].size_gb if node.model in facts.models else 0.0
        if "quantize" not in values and weights_gb > WEIGHTS_SHARE * facts.memory_gb:
            found.append(
                f"{node.model} has {weights_gb:.1f} GB of weights, and it has"
                f" {facts.memory_gb:.1f} GB of memory"
            )
    return found


def fetchable(state: ModelState) -> bool:
    """Whether a model is missing and may be downloaded."""
    return not state.present and not state.problem


def missing_models(cluster: Cluster, host: str, facts: Facts) -> list[str]:
    """What has to be fetched on a host."""
    return [model for model in needed_models(cluster, host) if fetchable(facts.models[model])]
