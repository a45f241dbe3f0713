"""What is started, restarted and left alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mlxfleet.common.cluster.agent import Facts, UnitState
from mlxfleet.common.cluster.key_sets import ensure_keys
from mlxfleet.common.cluster.plan import Plan, make_plan
from mlxfleet.common.errors import ConfigError
from tests.common.cluster.examples import SMALL, VERSION, facts, load, runs


def planned(folder: Path, text: str = SMALL, **units: dict[str, UnitState]) -> Plan:
    found: dict[str, Facts] = {
        host: facts(units=units.get(host, {})) for host in ("h1", "h2", "h3")
    }
    return make_plan(load(folder, text), found, VERSION)


def running(folder: Path, text: str = SMALL) -> dict[str, dict[str, UnitState]]:
    """What hosts record after `up` with a file."""
    plan = planned(folder, text)
    units: dict[str, dict[str, UnitState]] = {}
    for action in plan.actions:
        state = runs(action.unit.fingerprint, members=action.unit.members)
        units.setdefault(action.host, {})[action.unit.name] = state
    return units


def verbs(plan: Plan) -> dict[str, str]:
    return {action.unit.name: action.verb for action in plan.actions}


def test_everything_is_started_at_first(tmp_path: Path) -> None:
    assert verbs(planned(tmp_path)) == {"front": "start", "a": "start", "b": "start"}


def test_nothing_is_done_the_second_time(tmp_path: Path) -> None:
    plan = planned(tmp_path, **running(tmp_path))
    assert set(verbs(plan).values()) == {"keep"}
    assert not plan.gone


@pytest.mark.parametrize(
    ("old", "new", "restarted"),
    [
        ("max_running = 8", "max_running = 9", {"a", "b"}),
        ("max_running = 8", "max_running = 8\nmax_requests = 9", {"front"}),
        ("[settings]", '[environment]\nA = "b"\n[settings]', {"front", "a", "b"}),
        ("[settings]", "[settings]\ntrust_remote_code = true", {"front", "a", "b"}),
    ],
)
def test_only_what_has_changed_is_restarted(
    tmp_path: Path, old: str, new: str, restarted: set[str]
) -> None:
    plan = planned(tmp_path, SMALL.replace(old, new), **running(tmp_path))
    assert {name for name, verb in verbs(plan).items() if verb == "restart"} == restarted


def test_a_setting_of_one_node_restarts_that_one(tmp_path: Path) -> None:
    plan = planned(tmp_path, SMALL + "[nodes.settings]\nmax_queue = 3\n", **running(tmp_path))
    assert verbs(plan) == {"front": "keep", "a": "keep", "b": "restart"}
    assert "--max-queue=3" in plan.nodes[1].unit.arguments


def test_a_new_node_leaves_the_front_end_alone(tmp_path: Path) -> None:
    text = SMALL + '[[nodes]]\nname = "d"\nhost = "h3"\nmodel = "org/model"\n'
    plan = planned(tmp_path, text, **running(tmp_path))
    assert verbs(plan) == {"front": "keep", "a": "keep", "b": "keep", "d": "start"}


def test_a_node_that_is_no_longer_in_the_file_is_stopped_where_it_was(tmp_path: Path) -> None:
    shorter = SMALL[: SMALL.rindex("[[nodes]]")]
    plan = planned(tmp_path, shorter, **running(tmp_path))
    assert plan.gone == {"b": "h2"}
    moved = planned(tmp_path, SMALL.replace('host = "h2"', 'host = "h3"'), **running(tmp_path))
    assert moved.gone == {"b": "h2"}
    assert verbs(moved)["b"] == "start"


def test_what_keeps_failing_or_is_dead_is_started(tmp_path: Path) -> None:
    units = running(tmp_path)
    fingerprint = units["h2"]["b"].fingerprint
    units["h2"]["b"] = runs(fingerprint, state="waiting")
    assert verbs(planned(tmp_path, **units))["b"] == "start"
    units["h2"]["b"] = UnitState(fingerprint, None, {})
    assert verbs(planned(tmp_path, **units))["b"] == "start"


def test_another_version_restarts_everything(tmp_path: Path) -> None:
    units = running(tmp_path)
    found = {host: facts(units=units[host]) for host in ("h1", "h2")}
    plan = make_plan(load(tmp_path), found, "9.9.9")
    assert set(verbs(plan).values()) == {"restart"}


def test_keys_go_only_where_they_belong_and_no_secret_is_an_argument(tmp_path: Path) -> None:
    (tmp_path / "api").write_text("sk-secret\n")
    text = SMALL.replace("insecure = true", 'keys = "k"').replace(
        "allow_no_auth = true", 'api_key_file = "api"'
    )
    assert ensure_keys(tmp_path / "k", ["a", "b"]) == ["router", "a", "b"]
    assert ensure_keys(tmp_path / "k", ["a", "b"]) == []
    plan = planned(tmp_path, text)
    assert set(plan.front.unit.files) == {
        "keys/router.public",
        "keys/router.secret",
        "api_key_file",
    }
    assert set(plan.front.unit.live_files) == {"keys/a.public", "keys/b.public"}
    assert set(plan.nodes[0].unit.files) == {"keys/router.public", "keys/a.public", "keys/a.secret"}
    assert not any("sk-secret" in part for part in plan.front.unit.arguments)
    for path in (tmp_path / "k").glob("*.secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_half_a_pair_of_keys_is_an_error(tmp_path: Path) -> None:
    ensure_keys(tmp_path, ["a"])
    (tmp_path / "a.public").unlink()
    with pytest.raises(ConfigError, match="one half of the keys of a"):
        ensure_keys(tmp_path, ["a"])
