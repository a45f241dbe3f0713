"""A real Prometheus watches a fleet: all that dashboards, rules and alerts ask for is there."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.expressions import (
    Expression,
    alerts,
    dashboards,
    operands,
    panel_expressions,
    recorded,
)
from tests.integration.fleet import Fleet, wait_for
from tests.integration.prometheus import INTERVAL_S, Prometheus
from tests.integration.streams import hang_up

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus"
)

NODES = ("node-0", "node-1", "node-2")
SERVED = "served"
SIM = ("--engine", "sim", "--nodes", "3", "--sim-step-ms", "5", "--served-model-name", SERVED)
SENSORS = {
    "cpu_temperature_c": 60,
    "gpu_temperature_c": 70,
    "cpu_power_w": 5,
    "gpu_power_w": 20,
    "total_power_w": 40,
    "cpu_frequency_hz": 3e9,
    "gpu_frequency_hz": 1.4e9,
    "cpu_utilization": 0.2,
    "gpu_utilization": 0.9,
    "memory_pressure": 0,
    "memory_total_bytes": 64_000_000_000,
    "memory_used_bytes": 32_000_000_000,
    "wired_bytes": 16_000_000_000,
    "swap_used_bytes": 0,
    "thermal_state": 0,
    "failures": {"power": 1},
}
PATIENCE_S = 20.0
VARIABLES = {
    "$__rate_interval": "5s",
    "$node": "|".join(NODES),
    "$model": SERVED,
}


@pytest.fixture(scope="module")
def watched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen three nodes answer requests of all kinds."""
    folder = tmp_path_factory.mktemp("watched")
    script = folder / "telemetry.jsonl"
    script.write_text(json.dumps({"sensors": SENSORS}))
    arguments = ("--model", str(tiny_model), *SIM, "--telemetry", str(script))
    with Fleet(*arguments) as fleet, Prometheus(folder, fleet.url) as prometheus:
        expected = {f"mlxfleet-node/{node}": "up" for node in NODES} | {"mlxfleet-router": "up"}
        wait_for(lambda: prometheus.targets() == expected, "Prometheus to find all nodes")
        load(fleet)
        wait_for(lambda: caught_up(fleet, prometheus), "Prometheus to see the end of the load")
        yield prometheus


def load(fleet: Fleet) -> None:
    """Requests of all kinds, on all nodes, for some scrapes."""
    words = [f"word{number} " * 60 for number in range(6)]
    threads = [threading.Thread(target=converse, args=(fleet, prompt)) for prompt in words]
    for thread in threads:
        thread.start()
    hang_up(fleet)
    stream = fleet.client().completions.create(
        model=SERVED, prompt="Hello", max_tokens=100, stream=True
    )
    assert len(list(stream)) > 10
    assert ask(fleet, "completions", prompt="Hello", temperature="hot") == 400
    assert ask(fleet, "completions", prompt="Hello", model="other") == 404
    for thread in threads:
        thread.join()


def converse(fleet: Fleet, prompt: str) -> None:
    """Turns that share a beginning, long enough for a rate of each."""
    for turn in range(6):
        messages = [{"role": "user", "content": prompt + "and " * turn}]
        priority = "batch" if turn % 2 else "interactive"
        assert ask(fleet, "chat/completions", messages=messages, priority=priority) == 200


def ask(fleet: Fleet, endpoint: str, **fields: object) -> int:
    """The status of a request."""
    return fleet.post(f"/v1/{endpoint}", {"max_tokens": 100, **fields})[0]


def caught_up(fleet: Fleet, prometheus: Prometheus) -> bool:
    """Whether Prometheus has scraped the end of everything."""
    counters = ("mlxfleet_requests_answered_total", "mlxfleet_generated_tokens_total")
    return all(
        any(
            fleet.metric(name) == value
            for series in prometheus.ask(f"sum({name})")
            for value in series.values
        )
        for name in counters
    )


def substituted(text: str) -> str:
    """With values for Grafana's variables."""
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    assert "$" not in text, text
    return text


def assert_data(prometheus: Prometheus, expressions: list[Expression]) -> None:
    """Every one has had a number at some time; rules may need another turn for that."""
    end = time.monotonic() + PATIENCE_S
    while without := [e for e in expressions if not prometheus.ask(e.text)]:
        if time.monotonic() > end:
            raise AssertionError("no data:\n" + "\n".join(f"{e.where}: {e.text}" for e in without))
        time.sleep(INTERVAL_S)


def test_every_panel_has_data(watched: Prometheus) -> None:
    expressions = [e._replace(text=substituted(e.text)) for e in panel_expressions()]
    assert len(expressions) > 100
    assert_data(watched, expressions)


def test_legends_name_labels_that_are_there(watched: Prometheus) -> None:
    for expression in panel_expressions():
        labels = re.findall(r"\{\{(\w+)\}\}", expression.legend)
        for series in watched.ask(substituted(expression.text)):
            assert set(labels) <= series.labels.keys(), expression


def test_every_recorded_series_has_data(watched: Prometheus) -> None:
    assert_data(watched, [Expression(name, name) for name in sorted(recorded())])


def test_every_operand_of_every_alert_has_data(watched: Prometheus) -> None:
    parts = [
        Expression(name, part)
        for name, alert in alerts().items()
        for part in operands(alert["expr"])
    ]
    assert_data(watched, parts)


def test_prometheus_has_loaded_every_rule_and_none_fails(watched: Prometheus) -> None:
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == alerts().keys() | recorded()
    assert [rule["lastError"] for rule in rules if rule["health"] == "err"] == []


def test_a_fleet_that_is_well_alarms_nobody(watched: Prometheus) -> None:
    firing = watched.ask('ALERTS{alertstate="firing"}')
    assert not firing


@pytest.mark.parametrize("name", ["model", "node"])
def test_variables_find_what_there_is(watched: Prometheus, name: str) -> None:
    expected = {"model": [SERVED], "node": list(NODES)}
    for dashboard in dashboards().values():
        [query] = [
            v["query"]["query"] for v in dashboard["templating"]["list"] if v["name"] == name
        ]
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", substituted(query))
        assert found is not None
        selector, label = found.groups()
        assert watched.get(f"label/{label}/values", **{"match[]": selector}) == expected[name]
