"""Node: what the scheduler and the worker of each node do, and with which memory."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from mlxfleet.common.dashboards import node_memory, node_worker, states
from mlxfleet.common.dashboards.board import Board
from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.node_shares import (
    BY,
    HERE,
    hit_share,
    idle_share,
    kv_share,
    of_limit,
)
from mlxfleet.common.dashboards.panels import Panel, Query, figure, graph
from mlxfleet.common.dashboards.promql import code, quantile, rate, select

STAGE = "mlxfleet_stage_seconds"
STEP = "mlxfleet_worker_step_seconds"
GENERATED = "mlxfleet_generated_tokens_total"
FULL = Limits(0.7, 0.9)
STEP_LIMITS = Limits(0.05, 0.2)


def dashboard() -> Dashboard:
    """The dashboard."""
    board = Board("Node", "What the scheduler and the worker of each node do, with which memory.")
    board.row("Now", *now())
    board.row("Scheduler", *scheduler())
    board.row("Worker", *node_worker.worker())
    board.row("Batches", *node_worker.batches())
    board.row("Keys and values", *node_memory.keys_and_values())
    board.row("Memory and processes", *node_memory.memory())
    return board.dashboard


def now() -> list[Panel]:
    """A line of figures, each for every node."""
    state = code("mlxfleet_worker_up", states.names(states.WORKER), *HERE, by=BY)
    return [
        figure(
            "Worker",
            "The state that the worker is in.",
            "short",
            Query(state, "{{node}}"),
            states=states.WORKER,
        ),
        figure(
            "Running",
            "Sequences in the worker, of those that may be there (--max-running).",
            "percentunit",
            Query(of_limit("mlxfleet_running_sequences", "mlxfleet_running_limit"), "{{node}}"),
            limits=FULL,
        ),
        figure(
            "Queue",
            "Sequences that wait on the node, of those that may (--max-queue).",
            "percentunit",
            Query(of_limit("mlxfleet_queue_depth", "mlxfleet_queue_limit"), "{{node}}"),
            limits=Limits(0.5, 0.9),
        ),
        figure(
            "Output",
            "Tokens generated per second.",
            "short",
            Query(rate(GENERATED, *HERE, by=BY), "{{node}}"),
        ),
        figure(
            "Pass, p95",
            "Time that 95% of the worker's passes do not exceed.",
            "s",
            Query(quantile(0.95, STEP, *HERE, by=BY), "{{node}}"),
            limits=STEP_LIMITS,
        ),
        figure(
            "Idle with work",
            "Share of the time with sequences to run in which the device waited.",
            "percentunit",
            Query(idle_share(), "{{node}}"),
            limits=Limits(0.1, 0.3),
        ),
        figure(
            "KV memory",
            "Memory for running sequences that is used.",
            "percentunit",
            Query(kv_share(), "{{node}}"),
            limits=FULL,
        ),
        figure(
            "Cache hit",
            "Share of prompt tokens that came out of the prefix cache.",
            "percentunit",
            Query(hit_share(), "{{node}}"),
        ),
    ]


def scheduler() -> list[Panel]:
    """What waits and what runs."""
    return [
        graph(
            "Running",
            "Sequences in the worker, prefilled or decoded.",
            "short",
            Query(select("mlxfleet_running_sequences", *HERE), "{{node}}"),
            Query(select("mlxfleet_running_limit", *HERE), "{{node}} limit"),
        ),
        graph(
            "Queue",
            "Sequences that wait on the node.",
            "short",
            Query(select("mlxfleet_queue_depth", *HERE), "{{node}}"),
            Query(select("mlxfleet_queue_limit", *HERE), "{{node}} limit"),
        ),
        graph(
            "Prompt tokens to compute",
            "Of the sequences on the node, queued and running.",
            "short",
            Query(select("mlxfleet_waiting_prefill_tokens", *HERE), "{{node}}"),
        ),
        graph(
            "Wait in the queue",
            "From arrival on the node to a place in the worker.",
            "s",
            *stage("queue"),
            limits=Limits(1, 10),
        ),
        graph(
            "Prefill",
            "From a place in the worker to the first token.",
            "s",
            *stage("prefill"),
            limits=Limits(1, 10),
        ),
        graph(
            "Preemptions",
            "Sequences per second sent back to the queue because others needed their memory; many"
            " mean that memory is too small for what runs at once.",
            "short",
            Query(rate("mlxfleet_preemptions_total", *HERE, by=BY), "{{node}}"),
            limits=Limits(0.1, 1),
        ),
    ]


def stage(name: str) -> list[Query]:
    """Median and tail of a stage on each node."""
    matchers = (*HERE, f'stage="{name}"')
    return [
        Query(quantile(q, STAGE, *matchers, by=BY), f"{{{{node}}}} p{100 * q:g}")
        for q in (0.5, 0.95)
    ]
