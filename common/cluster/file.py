"""The cluster file: hosts, roles, models and settings. deploy/cluster.example.toml explains it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from mlxfleet.common.cluster import settings
from mlxfleet.common.cluster.settings import FRONT_STRUCTURES, NODE_STRUCTURES, Problem
from mlxfleet.common.cluster.toml_lines import line_of
from mlxfleet.common.config import FrontOptions, LinkOptions, RouterOptions
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.preflight import is_loopback

Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
HostName = Annotated[str, Meta(pattern="^[A-Za-z0-9_:%][A-Za-z0-9._:%@-]{0,252}$")]
Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Gigabytes = Annotated[float, Meta(ge=0, le=1e6)]
Service = Literal["auto", "launchd-daemon", "launchd-agent", "systemd", "keeper"]

FRONT = "front"
DEMO = "demo"


class ClusterTable(Struct, frozen=True, forbid_unknown_fields=True):
    """`[cluster]`: what holds for every host."""

    name: Name
    python: Text = "~/mlxfleet/.venv/bin/python"
    service: Service = "auto"
    start_timeout_s: Seconds = 600.0
    drain_timeout_s: Seconds = 120.0
    min_disk_gb: Gigabytes = 1.0


class Ssh(Struct, frozen=True, forbid_unknown_fields=True):
    """`[ssh]`: what the system's ssh is told; the rest is in the user's ssh configuration."""

    user: Text | None = None
    port: Port | None = None
    identity: Text | None = None
    options: tuple[Text, ...] = ()
    connect_timeout_s: Annotated[int, Meta(ge=1, le=600)] = 10
    multiplex: bool = True


class Links(Struct, frozen=True, forbid_unknown_fields=True):
    """`[links]`: between the front end and the nodes."""

    keys: Text = "keys"
    insecure: bool = False


class Front(Struct, frozen=True, forbid_unknown_fields=True):
    """`[front]`: the host of the router, tokenizers and detokenizers."""

    host: HostName
    address: HostName | None = None
    settings: dict[str, Any] = {}


class Node(Struct, frozen=True, forbid_unknown_fields=True):
    """`[[nodes]]`: a compute node."""

    name: Name
    host: HostName
    model: Text
    settings: dict[str, Any] = {}


class ClusterFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    cluster: ClusterTable
    front: Front
    nodes: Annotated[tuple[Node, ...], Meta(min_length=1, max_length=1024)]
    ssh: Ssh = Ssh()
    links: Links = Links()
    settings: dict[str, Any] = {}
    environment: dict[str, Any] = {}


@dataclass(frozen=True)
class Cluster:
    """A checked cluster file. Paths of this machine in it are relative to `folder`."""

    spec: ClusterFile
    folder: Path

    @property
    def front_address(self) -> str:
        """Where nodes and clients reach the front end."""
        return self.spec.front.address or self.spec.front.host.rpartition("@")[2]

    @property
    def front_settings(self) -> dict[str, Any]:
        """What the router is told; it listens on all addresses if the file does not say."""
        common = settings.chosen(self.spec.settings, FRONT_STRUCTURES)
        return {"host": "0.0.0.0", **common, **self.spec.front.settings}

    def node_settings(self, node: Node) -> dict[str, Any]:
        """What a node is told; its own settings go before the common ones."""
        return {**settings.chosen(self.spec.settings, NODE_STRUCTURES), **node.settings}

    @property
    def models(self) -> list[str]:
        """Models of all nodes, each once."""
        return list(dict.fromkeys(node.model for node in self.spec.nodes))

    @property
    def http_port(self) -> int:
        """Where the front end listens."""
        return int(self.front_settings.get("port", RouterOptions().port))

    @property
    def link_ports(self) -> tuple[int, ...]:
        """Where nodes join, and after that one port per detokenizer."""
        values = self.front_settings
        first = int(values.get("node_port", LinkOptions().node_port))
        each = int(values.get("detokenizers", FrontOptions().detokenizers))
        return tuple(range(first, first + 1 + each * len(self.models)))

    @property
    def node_endpoint(self) -> str:
        """Where nodes join, as they write it."""
        return f"tcp://{bracketed(self.front_address)}:{self.link_ports[0]}"

    @property
    def url(self) -> str:
        """The front end, for clients."""
        return f"http://{bracketed(self.front_address)}:{self.http_port}"

    def local(self, path: str) -> Path:
        """A path of this machine that the file names."""
        return self.folder / Path(path).expanduser()


def bracketed(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def load_cluster(path: Path) -> Cluster:
    """Read and check a cluster file; ConfigError says file, line, key and what was expected."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(syntax_error(path, str(error))) from error
    try:
        spec = msgspec.convert(data, ClusterFile)
    except msgspec.ValidationError as error:
        raise wrong(path, text, [type_problem(str(error))]) from error
    cluster = Cluster(spec, path.resolve().parent)
    if found := all_problems(cluster):
        raise wrong(path, text, found)
    return cluster


def wrong(path: Path, text: str, found: list[Problem]) -> ConfigError:
    """One line for each problem."""
    lines = [
        f"{path}:{line_of(text, problem.path)}: {dotted(problem.path)}: {problem.text}"
        for problem in found
    ]
    return ConfigError("\n".join(lines))


def dotted(path: tuple[str | int, ...]) -> str:
    """A key's path as one reads it: nodes[1].model."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the file"


def syntax_error(path: Path, reason: str) -> str:
    """TOML's own error with the line where other errors have it."""
    place = re.search(r" \(at line (\d+), column (\d+)\)$", reason)
    if place is None:
        return f"{path}: {reason}"
    return f"{path}:{place[1]}: column {place[2]}: {reason[: place.start()]}"


def type_problem(message: str) -> Problem:
    """What msgspec says, with the key's path taken apart."""
    text, _, place = message.partition(" - at `")
    path: tuple[str | int, ...] = tuple(
        int(index) if index else name for name, index in re.findall(r"\.([\w-]+)|\[(\d+)\]", place)
    )
    if unknown := re.search(r"unknown field `(.*)`", text):
        known = fields_at(path)
        text = f"unknown key{settings.suggestion(unknown[1], known)}"
        path = (*path, unknown[1])
    elif missing := re.search(r"missing required field `(.*)`", text):
        text = f"the key {missing[1]} is missing"
    return Problem(path, text.replace("Expected", "expected", 1))


def fields_at(path: tuple[str | int, ...]) -> list[str]:
    """The keys that the table at `path` may have."""
    tables: Mapping[str, type[Struct]] = {
        "cluster": ClusterTable,
        "ssh": Ssh,
        "links": Links,
        "front": Front,
        "nodes": Node,
    }
    kind = tables[str(path[0])] if path else ClusterFile
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def all_problems(cluster: Cluster) -> list[Problem]:
    """What is wrong beyond the types."""
    spec = cluster.spec
    both = (*FRONT_STRUCTURES, *NODE_STRUCTURES)
    found = settings.problems(spec.settings, both, ("settings",))
    found += settings.problems(spec.front.settings, FRONT_STRUCTURES, ("front", "settings"))
    found += [
        Problem(("environment", name), f"expected `str`, got {value!r}")
        for name, value in spec.environment.items()
        if not isinstance(value, str)
    ]
    seen: set[str] = set()
    for index, node in enumerate(spec.nodes):
        at = ("nodes", index)
        found += settings.problems(node.settings, NODE_STRUCTURES, (*at, "settings"))
        if node.name in seen or node.name == FRONT:
            found.append(Problem((*at, "name"), f"expected a name of its own, got {node.name!r}"))
        seen.add(node.name)
        if node.model == DEMO and len(cluster.models) > 1:
            text = "expected a hub id or a folder: the demo model is served alone"
            found.append(Problem((*at, "model"), text))
        if not on_every_host(node.model):
            wanted = f'a hub id, an absolute folder or one below ~, or "{DEMO}"'
            found.append(Problem((*at, "model"), f"expected {wanted}, got {node.model!r}"))
    if not found:
        found += front_problems(cluster)
        found += file_problems(cluster)
    return found


def on_every_host(model: str) -> bool:
    """Whether a model's name means the same wherever it is read."""
    return (
        model == DEMO
        or model.startswith(("/", "~/"))
        or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."))
    )


def front_problems(cluster: Cluster) -> list[Problem]:
    """Whether the front end is reachable, and closed to strangers."""
    values = cluster.front_settings
    for name in ("port", "node_port"):
        if values.get(name) == 0:
            return [Problem(("front", "settings", name), "expected a fixed port, got 0")]
    owner = ("front", "settings") if "host" in cluster.spec.front.settings else ("settings",)
    if is_loopback(str(values["host"])) and not is_loopback(cluster.front_address):
        text = f"expected an address that other hosts reach, got {values['host']!r}"
        return [Problem((*owner, "host"), text)]
    if is_loopback(str(values["host"])) or values.get("api_key_file"):
        return []
    if values.get("allow_no_auth"):
        return []
    text = "the front end is open to others: expected api_key_file, or allow_no_auth = true"
    return [Problem(("front",), text)]


def file_problems(cluster: Cluster) -> list[Problem]:
    """Files of this machine that settings name and that are not there."""
    spec = cluster.spec
    tables: list[tuple[tuple[str | int, ...], Mapping[str, Any]]] = [
        (("settings",), spec.settings),
        (("front", "settings"), spec.front.settings),
    ]
    tables += [(("nodes", i, "settings"), node.settings) for i, node in enumerate(spec.nodes)]
    return [
        Problem((*path, name), f"expected a file, and there is no {cluster.local(value)}")
        for path, table in tables
        for name, value in table.items()
        if name.endswith(settings.FILE_SUFFIX) and not cluster.local(value).is_file()
    ]
