"""Metrics of a running fleet: how requests end, where Prometheus finds nodes, nothing left over."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.fleet import Fleet, wait_for
from tests.integration.streams import hang_up

ANSWERED = "mlxfleet_requests_answered_total"
SIM = ("--engine", "sim", "--sim-step-ms", "5", "--nodes", "2", "--served-model-name", "served")


@pytest.fixture(scope="module")
def sim_fleet(tiny_model: object) -> Iterator[Fleet]:
    """Two simulated nodes under a name of their own."""
    with Fleet("--model", str(tiny_model), *SIM) as fleet:
        yield fleet


def ask(fleet: Fleet, **fields: object) -> int:
    """The status of a completion."""
    return fleet.post("/v1/completions", {"prompt": "Hello there", "max_tokens": 4, **fields})[0]


def answered(fleet: Fleet, outcome: str, model: str = "served") -> float:
    """Requests that ended so."""
    return fleet.metric(ANSWERED, endpoint="completions", outcome=outcome, model=model)


def test_outcomes_are_told_apart(sim_fleet: Fleet) -> None:
    assert ask(sim_fleet) == 200
    assert ask(sim_fleet, temperature="hot") == 400
    assert ask(sim_fleet, model="other") == 404
    assert ask(sim_fleet, max_tokens=10**6) == 400
    hang_up(sim_fleet)
    wait_for(lambda: answered(sim_fleet, "cancelled") == 1, "the stream to be given up")
    assert answered(sim_fleet, "ok") == 1
    assert answered(sim_fleet, "client_error") == 1
    assert answered(sim_fleet, "client_error", model="") == 2
    received = sim_fleet.metric("mlxfleet_requests_received_total", endpoint="completions")
    assert received == sim_fleet.metric(ANSWERED, endpoint="completions") == 5


def test_every_stage_is_measured(sim_fleet: Fleet) -> None:
    assert ask(sim_fleet, max_tokens=8) == 200
    for stage in ("validate", "tokenize", "admission", "route", "send", "queue", "prefill"):
        count = sim_fleet.metric("mlxfleet_stage_seconds_count", model="served", stage=stage)
        assert count >= 1, stage
    wait_for(
        lambda: sim_fleet.metric("mlxfleet_stage_seconds_count", stage="detokenize") >= 8,
        "what the detokenizer has measured",
    )
    for name in ("request", "time_to_first_token", "inter_token"):
        assert sim_fleet.metric(f"mlxfleet_{name}_seconds_count", model="served") >= 1


def test_prometheus_finds_every_node(sim_fleet: Fleet) -> None:
    groups = json.loads(sim_fleet.get("/metrics/targets")[1])
    assert [g["labels"]["__meta_mlxfleet_node"] for g in groups] == ["node-0", "node-1"]
    for node in ("node-0", "node-1"):
        labels = {"node": node, "model": "served"}
        assert sim_fleet.metric("mlxfleet_worker_up", state="ready", **labels) == 1
        assert sim_fleet.metric("mlxfleet_process_memory_bytes", role="scheduler", **labels) > 1e6


def test_passes_are_recorded_where_they_run(sim_fleet: Fleet) -> None:
    before = sim_fleet.metric("mlxfleet_generated_tokens_total")
    steps = sim_fleet.metric("mlxfleet_worker_step_seconds_count")
    assert ask(sim_fleet, prompt="word " * 50, max_tokens=20) == 200
    assert sim_fleet.metric("mlxfleet_generated_tokens_total") == before + 20
    assert sim_fleet.metric("mlxfleet_worker_step_seconds_count") >= steps + 20
    assert sim_fleet.metric("mlxfleet_chunk_tokens_sum") >= 50
    states = {s: sim_fleet.metric("mlxfleet_kv_bytes", state=s) for s in ("cached", "free")}
    assert all(states.values()), states
