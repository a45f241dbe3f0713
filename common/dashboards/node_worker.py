"""Rows of the Node dashboard: passes of the worker, and what is in them."""

from __future__ import annotations

from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.node_shares import BY, HERE, idle_share
from mlxfleet.common.dashboards.panels import Panel, Query, graph, heat
from mlxfleet.common.dashboards.promql import mean, quantile, rate, select

STEP = "mlxfleet_worker_step_seconds"
GAP = "mlxfleet_worker_idle_gap_seconds"
ROWS = "mlxfleet_batch_rows"
CHUNK = "mlxfleet_chunk_tokens"
GENERATED = "mlxfleet_generated_tokens_total"
PREFILLED = "mlxfleet_prefilled_tokens_total"
STEP_LIMITS = Limits(0.05, 0.2)


def worker() -> list[Panel]:
    """How the device is used."""
    busy = rate("mlxfleet_worker_busy_seconds_total", *HERE, by=BY)
    steps = [
        Query(quantile(q, STEP, *HERE, by=BY), f"{{{{node}}}} p{100 * q:g}")
        for q in (0.5, 0.95, 0.99)
    ]
    return [
        graph(
            "Time of a pass",
            "What a pass of the worker takes, prompt tokens and decoding rows together.",
            "s",
            *steps,
            limits=STEP_LIMITS,
        ),
        heat(
            "Time of a pass, distribution",
            "Passes per second by how long they took.",
            "s",
            rate(f"{STEP}_bucket", *HERE, by="le"),
        ),
        graph(
            "Idle gap",
            "How long the device waited before a pass although there were sequences to run.",
            "s",
            Query(mean(GAP, *HERE, by=BY), "{{node}} mean"),
            Query(quantile(0.95, GAP, *HERE, by=BY), "{{node}} p95"),
            limits=Limits(0.005, 0.02),
        ),
        graph(
            "Busy",
            "Share of time in passes.",
            "percentunit",
            Query(busy, "{{node}}"),
            top=1,
        ),
        graph(
            "Idle with work",
            "Share of the time with sequences to run in which the device waited.",
            "percentunit",
            Query(idle_share(), "{{node}}"),
            limits=Limits(0.1, 0.3),
            top=1,
        ),
        graph(
            "Passes",
            "Passes per second.",
            "short",
            Query(rate("mlxfleet_worker_steps_total", *HERE, by=BY), "{{node}}"),
        ),
        graph(
            "Tokens",
            "Tokens generated and prompt tokens computed, per second.",
            "short",
            Query(rate(GENERATED, *HERE, by=BY), "{{node}} generated"),
            Query(rate(PREFILLED, *HERE, by=BY), "{{node}} prefilled"),
        ),
        graph(
            "Expected decode step",
            "A step with one row more than now, by the measured cost of passes; the router reckons"
            " with it.",
            "s",
            Query(select("mlxfleet_decode_step_seconds", *HERE), "{{node}}"),
            limits=STEP_LIMITS,
        ),
        graph(
            "Expected prefill",
            "Prompt tokens per second beside the rows that decode; the router reckons with it.",
            "short",
            Query(select("mlxfleet_prefill_tokens_per_second", *HERE), "{{node}}"),
        ),
    ]


def batches() -> list[Panel]:
    """What is in a pass."""
    return [
        graph(
            "Rows",
            "Sequences that decode in a pass: the more, the better the device is used.",
            "short",
            Query(mean(ROWS, *HERE, by=BY), "{{node}} mean"),
            Query(quantile(0.95, ROWS, *HERE, by=BY), "{{node}} p95"),
            width=6,
        ),
        heat(
            "Rows, distribution",
            "Passes per second by how many sequences decode in them.",
            "short",
            rate(f"{ROWS}_bucket", *HERE, by="le"),
            width=6,
        ),
        graph(
            "Chunks",
            "Prompt tokens of a pass that has some.",
            "short",
            Query(mean(CHUNK, *HERE, by=BY), "{{node}} mean"),
            Query(quantile(0.95, CHUNK, *HERE, by=BY), "{{node}} p95"),
            width=6,
        ),
        heat(
            "Chunks, distribution",
            "Passes per second by how many prompt tokens they have.",
            "short",
            rate(f"{CHUNK}_bucket", *HERE, by="le"),
            width=6,
        ),
    ]
