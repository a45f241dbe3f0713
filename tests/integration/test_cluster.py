"""`mlxfleet up` and its kin on three hosts in miniature, over ssh, with real nodes."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from mlxfleet.common.cluster.units import KeeperState
from tests.integration.fleet import wait_for
from tests.integration.net_hosts import NetHosts, enter, why_impossible

CLUSTER = "miniature"
API_KEY = "sk-of-the-miniature"
NODES = ["node-a", "node-b", "node-c"]
CLIENTS = 3
EXIT_HOST = 68


class Cluster:
    """Three hosts with a cluster file."""

    def __init__(self, hosts: NetHosts, model: Path, python: str) -> None:
        self.hosts = hosts
        self.model = model
        self.python = python
        self.file = hosts.folder / "cluster.toml"
        self.url = f"http://{hosts.addresses[0]}:8000"
        (hosts.folder / "api-keys").write_text(API_KEY + "\n")
        (hosts.folder / "api-keys").chmod(0o600)

    def write(self, max_queue: int = 64, node_c: str = "") -> None:
        """Write the file; `node_c` are settings of that node alone."""
        nodes = "".join(
            f'[[nodes]]\nname = "{name}"\nhost = "{address}"\nmodel = "{self.model}"\n'
            for name, address in zip(NODES, self.hosts.addresses, strict=True)
        )
        self.file.write_text(
            f'[cluster]\nname = "{CLUSTER}"\npython = "{self.python}"\nservice = "keeper"\n'
            "start_timeout_s = 90\n"
            f'[ssh]\nuser = "root"\nidentity = "{self.hosts.identity}"\n'
            f'options = ["UserKnownHostsFile={self.hosts.known_hosts}"]\n'
            f'[front]\nhost = "{self.hosts.addresses[0]}"\n'
            '[front.settings]\napi_key_file = "api-keys"\ndrain_timeout_s = 5\n'
            f"[settings]\nmemory_gb = 0.5\nmax_queue = {max_queue}\nblas_threads = 1\n"
            f"{nodes}[nodes.settings]\n{node_c}\n"
        )

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command about this cluster."""
        return self.hosts.command(command, *arguments, "--cluster", str(self.file))

    def up(self) -> subprocess.CompletedProcess[str]:
        """`mlxfleet up`, which has to succeed."""
        done = self.run("up")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"ready {self.url}\n"
        return done

    def folder(self, name: str) -> Path:
        """Where a unit's state is."""
        host = 0 if name == "front" else NODES.index(name)
        return self.hosts.home(host) / ".mlxfleet" / CLUSTER / name

    def keeper(self, name: str) -> KeeperState:
        """What a unit's keeper says."""
        return msgspec.json.decode(
            (self.folder(name) / "keeper.json").read_bytes(), type=KeeperState
        )

    def children(self) -> dict[str, int]:
        """The process of each unit."""
        return {name: child_pid(self.keeper(name)) for name in ("front", *NODES)}

    def post(self, path: str, body: object) -> Any:
        """POST from where `up` ran; a thread that calls it must be in that network."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def complete(self) -> int:
        """The number of tokens of a completion."""
        body = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True}
        return int(self.post("/v1/completions", body)["usage"]["completion_tokens"])


def child_pid(state: KeeperState) -> int:
    """The process that a keeper keeps."""
    assert state.child is not None
    return state.child.pid


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_impossible()) is not None:
        pytest.skip(reason)
    with NetHosts(tmp_path_factory.mktemp("hosts"), len(NODES)) as hosts:
        cluster = Cluster(hosts, tiny_model, sys.executable)
        cluster.write()
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.run("down")


def test_the_cluster_serves(cluster: Cluster) -> None:
    assert cluster.hosts.inside(cluster.complete) == 24


def test_each_host_has_only_its_own_secrets(cluster: Cluster) -> None:
    held = {
        name: {path.name for path in (cluster.folder(name) / "files").rglob("*.secret")}
        for name in ("front", *NODES)
    }
    assert held == {"front": {"router.secret"}, **{name: {f"{name}.secret"} for name in NODES}}
    for name in ("front", *NODES):
        for path in (cluster.folder(name) / "files").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    lines = [
        " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    ]
    assert not any(API_KEY in line for line in lines)


def test_up_again_changes_nothing(cluster: Cluster) -> None:
    before = cluster.children()
    cluster.up()
    assert cluster.children() == before


def test_status_shows_every_node(cluster: Cluster) -> None:
    shown = cluster.run("status")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in NODES)


def test_a_drained_node_is_shown_and_left_so(cluster: Cluster) -> None:
    before = cluster.children()
    assert cluster.run("drain", "node-a").returncode == 0
    cluster.up()
    assert "draining" in cluster.run("status").stdout
    assert cluster.children() == before
    assert cluster.run("undrain", "node-a").returncode == 0
    assert "draining" not in cluster.run("status").stdout
    assert cluster.run("drain", "node-z").returncode != 0


def test_a_node_that_leaves_the_file_is_stopped_and_may_come_back(cluster: Cluster) -> None:
    before = cluster.children()
    whole = cluster.file.read_text()
    cluster.file.write_text(whole[: whole.rindex("[[nodes]]")])
    cluster.up()
    assert not psutil.pid_exists(before["node-c"])
    assert not (cluster.folder("front") / "files/keys/node-c.public").exists()
    cluster.file.write_text(whole)
    cluster.up()
    after = cluster.children()
    assert {**after, "node-c": 0} == {**before, "node-c": 0}


def test_a_log_is_followed_until_nobody_wants_it(cluster: Cluster) -> None:
    command = cluster.hosts.in_control("logs", "node-b", "--follow", "--cluster", str(cluster.file))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("ready node node-b" in line for line in process.stdout)
        process.terminate()
    followers = ("mlxfleet.common.cluster.agent", "follow")
    wait_for(
        lambda: (
            not any(
                all(word in command_line for word in followers)
                for process in psutil.process_iter(["cmdline"])
                if (command_line := process.info["cmdline"] or [])
            )
        ),
        "the agent on the host to end",
    )


def test_a_node_that_dies_is_started_again(cluster: Cluster) -> None:
    before = cluster.keeper("node-b")
    psutil.Process(child_pid(before)).kill()
    wait_for(
        lambda: (
            cluster.keeper("node-b").restarts > before.restarts
            and cluster.keeper("node-b").state == "ready"
        ),
        "the node to be back",
    )
    shown = cluster.run("logs", "node-b", "--lines", "500")
    assert "was killed by SIGKILL; starting it again" in shown.stdout
    assert "ready node node-b" in shown.stdout


def test_a_changed_setting_restarts_node_by_node_without_a_failed_request(
    cluster: Cluster,
) -> None:
    before = cluster.children()
    stop = threading.Event()

    def request_until_stopped() -> list[int]:
        enter(cluster.hosts.control)
        found = []
        # A pace that leaves the cores to the nodes that start.
        while not stop.wait(0.1):
            found.append(cluster.complete())
        return found

    cluster.write(max_queue=65)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(request_until_stopped) for _ in range(CLIENTS)]
        try:
            cluster.up()
        finally:
            stop.set()
        counts = [count for client in clients for count in client.result()]
    assert set(counts) == {24}
    after = cluster.children()
    assert after["front"] == before["front"]
    assert all(after[name] != before[name] for name in NODES)


def test_a_node_that_does_not_start_is_named_and_goes_back_to_the_old_settings(
    cluster: Cluster,
) -> None:
    before = cluster.children()
    cluster.write(max_queue=65, node_c="max_context = 1_000_000_000\nmemory_gb = 0.000001")
    failed = cluster.run("up")
    assert failed.returncode == EXIT_HOST, failed.stderr
    assert f"node-c on {cluster.hosts.addresses[2]} does not start" in failed.stderr
    assert "runs with the old ones again" in failed.stderr
    cluster.write(max_queue=65)
    kept = cluster.keeper("node-c")
    cluster.up()
    assert cluster.keeper("node-c").child == kept.child
    assert {**cluster.children(), "node-c": 0} == {**before, "node-c": 0}


def test_unreachable_hosts_are_named(cluster: Cluster) -> None:
    text = cluster.file.read_text()
    cluster.file.write_text(text.replace(cluster.hosts.addresses[1], "10.77.91.99"))
    try:
        failed = cluster.run("up")
    finally:
        cluster.file.write_text(text)
    assert failed.returncode == EXIT_HOST
    assert "10.77.91.99: ssh cannot reach it" in failed.stderr


def test_down_stops_everything(cluster: Cluster) -> None:
    pids = list(cluster.children().values())
    done = cluster.run("down")
    assert done.returncode == 0, done.stderr
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not list(cluster.hosts.folder.glob("host-*/home/.mlxfleet/*/*/files"))
