"""Rows of the Fleet dashboard: how many requests there are, how they end, how long they take."""

from __future__ import annotations

from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.panels import Panel, Query, graph, heat
from mlxfleet.common.dashboards.promql import MODEL, mean, quantile, rate, select, total

RECEIVED = "mlxfleet_requests_received_total"
ANSWERED = "mlxfleet_requests_answered_total"
TTFT = "mlxfleet_time_to_first_token_seconds"
INTER_TOKEN = "mlxfleet_inter_token_seconds"
REQUEST = "mlxfleet_request_seconds"
STAGE = "mlxfleet_stage_seconds"
SLOW_FIRST_TOKENS = "model:mlxfleet_time_to_first_token_slow:ratio_rate5m"
OUTCOMES = {
    "ok": "green",
    "client_error": "blue",
    "cancelled": "text",
    "backpressure": "orange",
    "error": "red",
}
ERRORS = Limits(0.01, 0.05)
TTFT_LIMITS = Limits(1, 2.5)


def traffic() -> list[Panel]:
    """How many requests, and how they end."""
    failed = rate(ANSWERED, MODEL, 'outcome!="ok"', by="outcome")
    answered = f"ignoring (outcome) group_left () ({rate(ANSWERED, MODEL)} > 0)"
    return [
        graph(
            "Requests by outcome",
            "Requests answered per second. client_error is the request's own fault, cancelled the"
            " client went away, backpressure no room, no node or out of time.",
            "reqps",
            Query(rate(ANSWERED, MODEL, by="outcome"), "{{outcome}}"),
            stacked=True,
            colors=OUTCOMES,
        ),
        graph(
            "Share that did not end well",
            "Of all requests answered, by outcome.",
            "percentunit",
            Query(f"{failed} / {answered}", "{{outcome}}"),
            limits=ERRORS,
            colors=OUTCOMES,
        ),
        graph(
            "Received minus answered",
            "Requests that are being answered now, beside the sequences (a request has one for each"
            " of its choices and prompts). If requests stay while sequences go, some are leaked.",
            "short",
            Query(f"{total(RECEIVED)} - {total(ANSWERED)}", "requests"),
            Query(total("mlxfleet_sequences_in_flight"), "sequences"),
        ),
        graph(
            "Requests by endpoint",
            "Requests received per second.",
            "reqps",
            Query(rate(RECEIVED, by="endpoint"), "{{endpoint}}"),
            width=12,
            stacked=True,
        ),
        graph(
            "Requests by model",
            "Requests answered per second; without a name: those that named no model served here.",
            "reqps",
            Query(rate(ANSWERED, MODEL, by="model"), "{{model}}"),
            width=12,
            stacked=True,
        ),
    ]


def latency() -> list[Panel]:
    """How long clients wait."""
    before_first = (MODEL, 'stage!="detokenize"')
    return [
        graph(
            "First token",
            "From the arrival of a request to the first token of each of its sequences.",
            "s",
            *percentiles(TTFT),
            limits=TTFT_LIMITS,
        ),
        graph(
            "Between two tokens",
            "Gaps between the tokens of a stream, at the router.",
            "s",
            *percentiles(INTER_TOKEN),
            limits=Limits(0.1, 0.25),
        ),
        graph(
            "End to end",
            "From the arrival of a request to its last byte; grows with the length of answers.",
            "s",
            *percentiles(REQUEST),
            limits=Limits(30, 120),
        ),
        heat(
            "First token, distribution",
            "First tokens per second by how long they took.",
            "s",
            rate(f"{TTFT}_bucket", MODEL, by="le"),
        ),
        heat(
            "Between two tokens, distribution",
            "Tokens per second by the gap before them.",
            "s",
            rate(f"{INTER_TOKEN}_bucket", MODEL, by="le"),
        ),
        heat(
            "End to end, distribution",
            "Requests per second by how long they took.",
            "s",
            rate(f"{REQUEST}_bucket", MODEL, by="le"),
        ),
        graph(
            "Where time goes until the first token",
            "Means of the stages, upon each other: what grows is what to look at. queue and prefill"
            " are on the node, the others in the front end.",
            "s",
            Query(mean(STAGE, *before_first, by="stage"), "{{stage}}"),
            stacked=True,
        ),
        graph(
            "Stages, p95",
            "Time that 95% do not exceed in a stage; detokenize is one step of a detokenizer.",
            "s",
            Query(quantile(0.95, STAGE, MODEL, by="stage"), "{{stage}}"),
        ),
        graph(
            "Slow first tokens",
            "Share of first tokens that took more than 2.5 s, over 5 minutes. The objective is 5%"
            " at most.",
            "percentunit",
            Query(select(SLOW_FIRST_TOKENS, MODEL), "{{model}}"),
            limits=Limits(0.05, 0.3),
        ),
    ]


def percentiles(histogram: str) -> list[Query]:
    """Median and tail."""
    return [Query(quantile(q, histogram, MODEL), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)]
