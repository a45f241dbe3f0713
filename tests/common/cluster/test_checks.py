"""What is said of a host that cannot do its part."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxfleet.common.cluster.agent import ModelState
from mlxfleet.common.cluster.checks import host_problems, missing_models
from mlxfleet.common.cluster.ssh import why_silent
from tests.common.cluster.examples import MODEL, SMALL, VERSION, facts, load, runs


def test_a_good_host_has_no_problem(tmp_path: Path) -> None:
    assert host_problems(load(tmp_path), "h1", facts(), VERSION) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": "x86_64"}, "Darwin on x86_64: mlxfleet runs on Macs with Apple silicon"),
        ({"python": (3, 9)}, "Python 3.9: mlxfleet needs 3.11"),
        ({"version": "0.0.1"}, "mlxfleet 0.0.1 there, 1.2.3 here; install 1.2.3 there"),
        ({"free_disk_gb": 0.5}, "0.5 GB of disk are free, 1.0 needed"),
        ({"memory_gb": 2.0}, "org/model has 2.0 GB of weights, and it has 2.0 GB of memory"),
        ({"ports_in_use": [8000]}, "port 8000 is in use there"),
        ({"service_problem": "no sudo"}, "no sudo"),
        (
            {"models": {MODEL: ModelState(present=False, problem="there is no model folder")}},
            "there is no model folder",
        ),
        (
            {"models": {MODEL: ModelState(present=False)}, "free_disk_gb": 3.0},
            "3.0 GB of disk are free, 6.0 needed to fetch org/model",
        ),
    ],
)
def test_problems(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    [problem] = host_problems(load(tmp_path), "h1", facts(**changes), VERSION)
    assert problem.startswith(said)


def test_asked_memory_is_compared(tmp_path: Path) -> None:
    cluster = load(tmp_path, SMALL.replace("max_running = 8", "memory_gb = 65"))
    [problem] = host_problems(cluster, "h2", facts(), VERSION)
    assert problem == "memory_gb = 65 for b, and it has 64.0 GB"


def test_a_mac_is_one_node(tmp_path: Path) -> None:
    cluster = load(tmp_path, SMALL.replace('host = "h2"', 'host = "h1"'))
    assert any(
        "a Mac has one Metal device" in p for p in host_problems(cluster, "h1", facts(), VERSION)
    )
    linux = facts(system="Linux", machine="x86_64")
    assert host_problems(cluster, "h1", linux, VERSION) == []


def test_ports_of_a_running_front_end_are_its_own(tmp_path: Path) -> None:
    busy = facts(ports_in_use=[8000, 8100], units={"front": runs("f")})
    assert host_problems(load(tmp_path), "h1", busy, VERSION) == []


def test_a_model_that_is_missing_is_fetched(tmp_path: Path) -> None:
    cluster = load(tmp_path)
    assert missing_models(cluster, "h2", facts()) == []
    away = facts(models={MODEL: ModelState(present=False)})
    assert missing_models(cluster, "h2", away) == [MODEL]


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (255, "ssh: connect to host h port 22: No route", "ssh cannot reach it: ssh: connect"),
        (127, "sh: 1: /x/python: not found", "there is no /x/python; install mlxfleet there"),
        (1, "/x/python: No module named mlxfleet", "/x/python there has no mlxfleet of this"),
        (1, "Traceback ...\nValueError", "/x/python exited with 1: Traceback"),
    ],
)
def test_an_agent_that_says_nothing_is_explained(code: int, said: str, why: str) -> None:
    assert why_silent(code, said, "/x/python").startswith(why)
