"""Cluster files: what is in them, and what is said of wrong ones."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import msgspec
import pytest

from mlxfleet.common.cli import app
from mlxfleet.common.cluster import file
from mlxfleet.common.cluster.file import load_cluster
from mlxfleet.common.cluster.settings import FRONT_STRUCTURES, NODE_STRUCTURES
from mlxfleet.common.config import SecurityOptions
from mlxfleet.common.errors import ConfigError
from tests.common.cluster.examples import EXAMPLE, SMALL, load

TABLES = {
    "cluster": file.ClusterTable,
    "ssh": file.Ssh,
    "links": file.Links,
    "front": file.Front,
    "nodes": file.Node,
}


def example(folder: Path) -> Path:
    (folder / "api-keys.txt").write_text("key\n")
    path = folder / "cluster.toml"
    path.write_text(EXAMPLE.read_text())
    return path


def test_the_example_is_right(tmp_path: Path) -> None:
    cluster = load_cluster(example(tmp_path))
    assert cluster.url == "http://10.0.0.1:8000"
    assert cluster.node_endpoint == "tcp://10.0.0.1:8100"
    assert cluster.link_ports == (8100, 8101)
    assert cluster.front_settings["max_requests"] == 2048
    first, second = cluster.spec.nodes
    assert cluster.node_settings(first) == {"max_running": 48}
    assert cluster.node_settings(second) == {"max_running": 64, "memory_gb": 48.0}


def test_the_example_has_every_key() -> None:
    text = EXAMPLE.read_text()
    for table, kind in TABLES.items():
        body = re.search(rf"^\[+{table}\]+$(.*?)(?=^\[(?!\[?{table}[.\]])|\Z)", text, re.M | re.S)
        assert body is not None, table
        for field in msgspec.structs.fields(kind):
            assert re.search(rf"^{field.name} = |\.{field.name}\]", body[1], re.M), field.name
    for field in msgspec.structs.fields(file.ClusterFile):
        assert re.search(rf"^\[+{field.name}\]", text, re.M), field.name


@pytest.mark.parametrize(
    ("command", "structures"), [("router", FRONT_STRUCTURES), ("node", NODE_STRUCTURES)]
)
def test_settings_are_the_options_of_the_commands(
    command: str, structures: tuple[type, ...]
) -> None:
    function = app[command].default_command
    assert function is not None
    hints = typing.get_type_hints(inspect.unwrap(function))
    taken = {kind for kind in hints.values() if hasattr(kind, "__dataclass_fields__")}
    assert taken - {SecurityOptions} == set(structures)


WRONG = [
    ('name = "c"', 'name = "c"\nnmae = 1', 3, "cluster.nmae: unknown key; did you mean name?"),
    ('name = "c"', "name = 5", 2, "cluster.name: expected `str`, got `int`"),
    ('name = "c"', 'name = "a b"', 2, "cluster.name: expected `str` matching regex"),
    ('name = "c"', "", 1, "cluster: the key name is missing"),
    ("[cluster]", "[clutser]", 1, "clutser: unknown key; did you mean cluster?"),
    ("insecure = true", 'insecure = "yes"', 5, "links.insecure: expected `bool`, got `str`"),
    ('host = "h1"\n\n', 'host = "-oProxyCommand=x"\n\n', 8, "front.host: expected `str` matching"),
    (
        "max_running = 8",
        "max_runing = 8",
        14,
        "settings.max_runing: unknown setting max_runing; did",
    ),
    ("max_running = 8", "max_running = 0", 14, "settings.max_running: expected `int` >= 1"),
    ("max_running = 8", 'max_running = "8"', 14, "settings.max_running: expected `int`, got `str`"),
    ("max_running = 8", "kv_bits = 5", 14, "settings.kv_bits: "),
    ("allow_no_auth = true", "max_running = 1", 11, "front.settings.max_running: unknown setting"),
    (
        "allow_no_auth = true",
        "",
        7,
        "front: the front end is open to others: expected api_key_file",
    ),
    ("allow_no_auth = true", 'host = "127.0.0.1"', 11, "front.settings.host: expected an address"),
    (
        "allow_no_auth = true",
        'api_key_file = "no"',
        11,
        "front.settings.api_key_file: expected a file",
    ),
    ("allow_no_auth = true", "allow_no_auth = true\nport = 0", 12, "expected a fixed port, got 0"),
    ('name = "b"', 'name = "a"', 22, "nodes[1].name: expected a name of its own, got 'a'"),
    ('name = "b"', 'name = "front"', 22, "nodes[1].name: expected a name of its own"),
    (
        'name = "b"',
        'name = "b"\nmodle = "x"',
        23,
        "nodes[1].modle: unknown key; did you mean model?",
    ),
    ('host = "h2"\n', "", 21, "nodes[1]: the key host is missing"),
    (
        'host = "h2"\nmodel = "org/model"',
        'host = "h2"\nmodel = "models/x/y"',
        24,
        "nodes[1].model: expected a hub id, an absolute folder or one below ~",
    ),
    (
        'host = "h2"\nmodel = "org/model"',
        'host = "h2"\nmodel = "demo"',
        24,
        "nodes[1].model: expected a hub id or a folder: the demo model is served alone",
    ),
    ("[settings]", "[settings", 13, "column"),
    ("[settings]", "[environment]\nA = 1\n[settings]", 14, "environment.A: expected `str`, got 1"),
]


@pytest.mark.parametrize(("old", "new", "line", "said"), WRONG)
def test_errors_say_file_line_key_and_what_was_expected(
    tmp_path: Path, old: str, new: str, line: int, said: str
) -> None:
    assert SMALL.count(old) >= 1
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, SMALL.replace(old, new, 1))
    first = str(raised.value).splitlines()[0]
    assert first.startswith(f"{tmp_path / 'cluster.toml'}:{line}: "), first
    assert said in first


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("max_running = 8", "max_running = 0\nmax_queue = 0\nfoo = 1")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert len(str(raised.value).splitlines()) == 3


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it"):
        load_cluster(tmp_path / "no.toml")
