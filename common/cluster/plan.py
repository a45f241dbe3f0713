"""What should run on which host, and what has to be done so that it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlxfleet.common.cluster import settings
from mlxfleet.common.cluster.agent import Facts, UnitState
from mlxfleet.common.cluster.file import DEMO, FRONT, Cluster, Node
from mlxfleet.common.cluster.key_sets import KEYS_FOLDER, accepted_keys, front_keys, node_keys
from mlxfleet.common.cluster.units import Unit
from mlxfleet.common.config import RouterOptions

FILES_FOLDER = "files"
NODE_STOP_S = 20.0
FRONT_STOP_SLACK_S = 15.0

Verb = Literal["keep", "start", "restart"]


@dataclass(frozen=True)
class Action:
    """What to do about a unit on a host."""

    verb: Verb
    host: str
    unit: Unit


@dataclass(frozen=True)
class Plan:
    """The way to what a cluster file says. `gone` are nodes, with hosts, that are in it no more."""

    front: Action
    nodes: tuple[Action, ...]
    gone: Mapping[str, str]

    @property
    def actions(self) -> tuple[Action, ...]:
        """All of them, the front end first."""
        return (self.front, *self.nodes)


def make_plan(cluster: Cluster, facts: Mapping[str, Facts], version: str) -> Plan:
    """Compare what should run with what hosts have recorded."""
    spec = cluster.spec
    front = front_unit(cluster, version)
    recorded = facts[spec.front.host].units.get(FRONT)
    wanted = {node.name: node.host for node in spec.nodes}
    before = recorded.members if recorded else {}
    return Plan(
        front=action(spec.front.host, front, facts),
        nodes=tuple(
            action(node.host, node_unit(cluster, node, version), facts) for node in spec.nodes
        ),
        gone={name: host for name, host in before.items() if wanted.get(name) != host},
    )


def action(host: str, unit: Unit, facts: Mapping[str, Facts]) -> Action:
    """What to do about one unit."""
    return Action(verb(unit.fingerprint, facts[host].units.get(unit.name)), host, unit)


def verb(fingerprint: str, state: UnitState | None) -> Verb:
    """`start` what does not run or keeps failing, `restart` what runs as something else."""
    if state is None or state.keeper is None or state.keeper.state == "waiting":
        return "start"
    return "keep" if state.fingerprint == fingerprint else "restart"


def front_unit(cluster: Cluster, version: str) -> Unit:
    """The front end: router, tokenizers and detokenizers."""
    spec = cluster.spec
    values = {
        "node_host": "0.0.0.0",
        "advertise_host": cluster.front_address,
        **cluster.front_settings,
    }
    given, files = sent_files(cluster, values)
    live: dict[str, bytes] = {}
    if not spec.links.insecure:
        keys = cluster.local(spec.links.keys)
        files |= front_keys(keys)
        live = accepted_keys(keys, (node.name for node in spec.nodes))
    drain_s = float(values.get("drain_timeout_s", RouterOptions().drain_timeout_s))
    return Unit(
        cluster=spec.cluster.name,
        name=FRONT,
        arguments=(
            "router",
            *(flag for model in cluster.models for flag in model_flag(model)),
            *settings.flags(given, settings.FRONT_STRUCTURES),
            *trust_flag(cluster),
            *link_flags(cluster),
        ),
        environment=spec.environment,
        files=files,
        service=spec.cluster.service,
        stop_timeout_s=drain_s + FRONT_STOP_SLACK_S,
        version=version,
        members={node.name: node.host for node in spec.nodes},
        live_files=live,
    )


def node_unit(cluster: Cluster, node: Node, version: str) -> Unit:
    """A compute node: scheduler and worker."""
    spec = cluster.spec
    given, files = sent_files(cluster, cluster.node_settings(node))
    if not spec.links.insecure:
        files |= node_keys(cluster.local(spec.links.keys), node.name)
    return Unit(
        cluster=spec.cluster.name,
        name=node.name,
        arguments=(
            "node",
            f"--router={cluster.node_endpoint}",
            f"--name={node.name}",
            *model_flag(node.model),
            *settings.flags(given, settings.NODE_STRUCTURES),
            *link_flags(cluster),
        ),
        environment=spec.environment,
        files=files,
        service=spec.cluster.service,
        stop_timeout_s=NODE_STOP_S,
        version=version,
    )


def model_flag(model: str) -> list[str]:
    """The demo model is the one that is not named."""
    return [] if model == DEMO else [f"--model={model}"]


def trust_flag(cluster: Cluster) -> list[str]:
    """The front end loads the tokenizers of models whose code nodes are to run."""
    trusted = any(
        cluster.node_settings(node).get("trust_remote_code") for node in cluster.spec.nodes
    )
    return ["--trust-remote-code"] if trusted else []


def link_flags(cluster: Cluster) -> list[str]:
    """Keys, or the word that there are none."""
    if cluster.spec.links.insecure:
        return ["--insecure-links"]
    return [f"--keys={FILES_FOLDER}/{KEYS_FOLDER}"]


def sent_files(
    cluster: Cluster, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Settings as the host sees them, and the contents of the files that go there."""
    given: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in values.items():
        given[name] = value
        if name.endswith(settings.FILE_SUFFIX):
            files[name] = cluster.local(value).read_bytes()
            given[name] = f"{FILES_FOLDER}/{name}"
    return given, files


def needed_models(cluster: Cluster, host: str) -> list[str]:
    """Models that must be on a host: the front end needs their tokenizers."""
    found = [node.model for node in cluster.spec.nodes if node.host == host]
    if host == cluster.spec.front.host:
        found += cluster.models
    return list(dict.fromkeys(found))
