"""Fleet: what clients feel, and how work is spread over nodes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from mlxfleet.common.dashboards import fleet_load, fleet_nodes, fleet_requests, states
from mlxfleet.common.dashboards.board import Board
from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.panels import Column, Panel, Query, figure, overview
from mlxfleet.common.dashboards.promql import MODEL, NODE, quantile, rate, select, share, total

ANSWERED = "mlxfleet_requests_answered_total"
TTFT = "mlxfleet_time_to_first_token_seconds"
INTER_TOKEN = "mlxfleet_inter_token_seconds"
OUTPUT = "mlxfleet_output_tokens_total"
PROMPT = "mlxfleet_prompt_tokens_total"
CACHED = "mlxfleet_cached_prompt_tokens_total"
ERRORS = Limits(0.01, 0.05)
TTFT_LIMITS = Limits(1, 2.5)
NOT_FAILED = Limits(0.001, 0.01)


def dashboard() -> Dashboard:
    """The dashboard."""
    board = Board("Fleet", "What clients feel, and how the work is spread over nodes.")
    board.row("Now", *now())
    board.row("Traffic", *fleet_requests.traffic())
    board.row("Latency", *fleet_requests.latency())
    board.row("Tokens", *fleet_load.tokens())
    board.row("Queue", *fleet_load.queue())
    board.row("Models", models())
    board.row("Nodes", *fleet_nodes.nodes())
    board.row("Processes", *fleet_nodes.processes())
    return board.dashboard


def now() -> list[Panel]:
    """A line of figures."""
    errors = rate(ANSWERED, MODEL, 'outcome="error"')
    hits = share(rate(CACHED, MODEL), rate(PROMPT, MODEL))
    firing = 'sum(ALERTS{alertname=~"Mlxfleet.*", alertstate="firing"}) or vector(0)'
    return [
        figure(
            "Ready",
            "Whether requests can be answered now, as /ready says.",
            "short",
            Query("min(mlxfleet_ready)", "ready"),
            states=states.YES,
        ),
        figure(
            "Nodes that take requests",
            "Share of the known nodes that get requests.",
            "percentunit",
            Query(f"avg({select('mlxfleet_node_ready', MODEL, NODE)})", "nodes"),
            limits=Limits(1, 0.5, falling=True),
        ),
        figure(
            "Requests",
            "Requests answered per second, however they ended.",
            "reqps",
            Query(rate(ANSWERED, MODEL), "answered"),
        ),
        figure(
            "Errors",
            "Share of requests that failed and should not have: neither the client's fault, nor"
            " given up by it, nor refused for lack of room.",
            "percentunit",
            Query(share(errors, rate(ANSWERED, MODEL)), "error"),
            limits=ERRORS,
        ),
        figure(
            "First token, p95",
            "Time that 95% of sequences do not exceed until their first token.",
            "s",
            Query(quantile(0.95, TTFT, MODEL), "p95"),
            limits=TTFT_LIMITS,
        ),
        figure(
            "Output",
            "Tokens per second from all nodes.",
            "short",
            Query(rate(OUTPUT, MODEL), "tokens/s"),
        ),
        figure(
            "Cache hit",
            "Share of prompt tokens that came out of a prefix cache.",
            "percentunit",
            Query(hits, "cached"),
            limits=Limits(0.2, 0.05, falling=True),
        ),
        figure(
            "Alerts",
            "Alerts of mlxfleet that fire.",
            "short",
            Query(firing, "firing"),
            limits=Limits(1, 3),
        ),
    ]


def models() -> Panel:
    """A row for each model."""
    named = (MODEL, 'model!=""')
    by = "model"
    answered = rate(ANSWERED, *named, by=by)
    failed = rate(ANSWERED, *named, 'outcome!~"ok|client_error|cancelled"', by=by)
    return overview(
        "Models",
        "Each model now. Failed are requests that ended in error or were refused.",
        "model",
        Column(
            "Nodes ready",
            total("mlxfleet_node_ready", MODEL, by=by),
            "short",
            Limits(1, falling=True),
        ),
        Column("Requests/s", answered, "reqps"),
        Column("Failed", share(failed, answered), "percentunit", NOT_FAILED),
        Column("First token p95", quantile(0.95, TTFT, MODEL, by=by), "s", TTFT_LIMITS),
        Column(
            "Between tokens p95", quantile(0.95, INTER_TOKEN, MODEL, by=by), "s", Limits(0.1, 0.25)
        ),
        Column("Tokens/s", rate(OUTPUT, MODEL, by=by), "short"),
        Column(
            "Cache hit",
            share(rate(CACHED, MODEL, by=by), rate(PROMPT, MODEL, by=by)),
            "percentunit",
        ),
    )
