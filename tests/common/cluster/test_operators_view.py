"""What operators see of a front end, and how hosts are reached."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from mlxfleet.common.cluster.commands import place, reached
from mlxfleet.common.cluster.file import Ssh
from mlxfleet.common.cluster.fleet_table import fleet_table
from mlxfleet.common.cluster.rollout import not_generating
from mlxfleet.common.cluster.router_client import Fleet, FleetNode, NoSuchNodeError, refused
from mlxfleet.common.cluster.ssh import Shell
from mlxfleet.common.errors import ConfigError, NetworkError
from tests.common.cluster.examples import load

NODE = FleetNode(
    name="a",
    model="m",
    chip="Apple M3 Ultra",
    state="ready",
    running=3,
    queued=1,
    kv_used_bytes=5_000_000_000,
    kv_budget_bytes=20_000_000_000,
    cached_tokens=300,
    prefilled_tokens=100,
    tokens_per_s=123.44,
)


def shown(fleet: Fleet) -> str:
    output = io.StringIO()
    Console(width=160, file=output).print(fleet_table("http://h:1", fleet))
    return output.getvalue()


def test_the_table_shows_load_cache_and_speed() -> None:
    text = shown(Fleet(nodes=[NODE, FleetNode(name="[b]")]))
    for part in ("Apple M3 Ultra", "ready", "25% of 20.0 GB", "75%", "123.4", "[b]"):
        assert part in text
    assert "°C" not in text


@pytest.mark.parametrize(
    ("state", "breaker", "open_s", "text"),
    [
        ("ready", "open", 12.0, "breaker open 12 s"),
        ("busy", "half_open", 0.0, "breaker half open"),
        ("hung", "open", 12.0, "hung"),
    ],
)
def test_a_node_that_its_breaker_keeps_from_requests_does_not_look_ready(
    state: str, breaker: str, open_s: float, text: str
) -> None:
    node = FleetNode(name="a", state=state, breaker=breaker, breaker_open_s=open_s)
    table = shown(Fleet(nodes=[node]))
    assert text in table
    assert "ready" not in table
    assert "busy" not in table


def test_a_node_that_loads_says_how_far_it_is() -> None:
    progress = {"stage": "reading", "loaded_bytes": 31 * 10**9, "total_bytes": 98 * 10**9}
    progress["remaining_s"] = 40
    node = {"name": "a", "state": "loading", "loading": progress}
    fleet = msgspec.convert({"nodes": [node]}, Fleet)
    assert "loading 98 GB, 31 of 98, about 40 s" in " ".join(shown(fleet).split())


def test_temperatures_are_shown_when_known() -> None:
    assert "°C" in shown(Fleet(nodes=[FleetNode(name="a", temperature_c=61.0)]))


def test_nodes_that_do_not_take_requests_are_told_apart() -> None:
    drained = FleetNode(name="d", state="draining")
    fleet = Fleet(nodes=[NODE, FleetNode(name="b", state="loading"), drained])
    assert not_generating(fleet, ["a", "b", "c", "d"]) == {
        "b": "is loading",
        "c": "has not joined the front end",
    }


def test_refusals_are_explained() -> None:
    body = b'{"error": {"message": "there is no node x"}}'
    assert isinstance(refused("http://h/admin/drain/x", 404, body), NoSuchNodeError)
    assert isinstance(refused("http://h/fleet", 401, b""), ConfigError)
    assert isinstance(refused("http://h/fleet", 503, b"x"), NetworkError)
    for status in (403, 421):
        body = b'{"error": {"message": "--allowed-hosts h"}}'
        with pytest.raises(ConfigError, match=r"--allowed-hosts h$"):
            raise refused("http://h/fleet", status, body)
    with pytest.raises(ConfigError, match="no /fleet"):
        raise refused("http://h/fleet", 404, b"")


def test_a_host_is_named_by_itself_or_by_its_node(tmp_path: Path) -> None:
    cluster = load(tmp_path)
    assert place(cluster, "front") == ("h1", "front")
    assert place(cluster, "b") == ("h2", "b")
    assert place(cluster, "h2") == ("h2", "")
    with pytest.raises(ConfigError, match="there are front, a, b"):
        place(cluster, "z")


def test_url_or_cluster_file() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        reached(Path("x"), "http://h", None)
    with pytest.raises(ConfigError, match="expected http"):
        reached(None, "h:8000", None)
    assert reached(None, "http://h:1/", None)[1].url == "http://h:1"


def test_ssh_never_asks_and_takes_no_option_for_a_host() -> None:
    ssh = Ssh(user="u", port=2222, options=("A=b",))
    shell = Shell(ssh, Path("/id"), "~/my venv/bin/python", None)
    command = shell.command("h", shell.agent("logs", "c", "", "5", "once"))
    assert command[:4] == ["ssh", "-T", "-o", "BatchMode=yes"]
    assert command[-3:] == [
        "--",
        "h",
        "~/'my venv/bin/python' -m mlxfleet.common.cluster.agent logs c '' 5 once",
    ]
    for words in (["-p", "2222"], ["-l", "u"], ["-i", "/id"], ["-o", "A=b"]):
        assert " ".join(words) in " ".join(command)
    assert "ControlMaster=auto" not in command
