"""Rows of the Fleet dashboard: tokens that go in and come out, and what waits."""

from __future__ import annotations

from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.panels import Panel, Query, graph
from mlxfleet.common.dashboards.promql import MODEL, quantile, rate, share, total

STAGE = "mlxfleet_stage_seconds"
OUTPUT = "mlxfleet_output_tokens_total"
PROMPT = "mlxfleet_prompt_tokens_total"
CACHED = "mlxfleet_cached_prompt_tokens_total"


def tokens() -> list[Panel]:
    """What goes in and comes out."""
    hits = share(rate(CACHED, MODEL, by="model"), rate(PROMPT, MODEL, by="model"))
    return [
        graph(
            "Output",
            "Tokens per second from nodes, by model.",
            "short",
            Query(rate(OUTPUT, MODEL, by="model"), "{{model}}"),
            stacked=True,
        ),
        graph(
            "Prompts",
            "Prompt tokens per second, and what of them came out of a prefix cache.",
            "short",
            Query(rate(PROMPT, MODEL), "prompt"),
            Query(rate(CACHED, MODEL), "cached"),
        ),
        graph(
            "Cache hit",
            "Share of prompt tokens that came out of a prefix cache, by model.",
            "percentunit",
            Query(hits, "{{model}}"),
            top=1,
        ),
    ]


def queue() -> list[Panel]:
    """What waits in the router, and where the limits are."""
    in_flight = total("mlxfleet_sequences_in_flight")
    limit = total("mlxfleet_sequences_limit")
    admission = (MODEL, 'stage="admission"')
    return [
        graph(
            "Waiting in the router",
            "Sequences that wait for a place on a node. Interactive ones go before batch.",
            "short",
            Query(total("mlxfleet_sequences_waiting", by="priority"), "{{priority}}"),
            width=6,
            stacked=True,
        ),
        graph(
            "In flight and limit",
            "Sequences in the router, and how many may be there (--max-requests); more are"
            " answered 429.",
            "short",
            Query(in_flight, "in flight"),
            Query(limit, "limit"),
            width=6,
            colors={"limit": "red"},
        ),
        graph(
            "How full the router is",
            "Sequences in the router, of those that may be there.",
            "percentunit",
            Query(share(in_flight, limit), "in flight"),
            width=6,
            limits=Limits(0.7, 0.9),
            top=1,
        ),
        graph(
            "Wait for a place on a node",
            "Time in the router's queue.",
            "s",
            *(Query(quantile(q, STAGE, *admission), f"p{100 * q:g}") for q in (0.5, 0.95)),
            width=6,
            limits=Limits(1, 10),
        ),
    ]
