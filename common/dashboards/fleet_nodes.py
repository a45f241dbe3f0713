"""Rows of the Fleet dashboard: nodes, and the processes in front of them."""

from __future__ import annotations

from mlxfleet.common.dashboards import states
from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.panels import Panel, Query, graph, timeline
from mlxfleet.common.dashboards.promql import MODEL, NODE, code, rate, select, total

GENERATED = "mlxfleet_generated_tokens_total"


def nodes() -> list[Panel]:
    """Who does how much, and who is ill."""
    state = code("mlxfleet_node_state", states.names(states.NODE), NODE, by="node")
    breaker = code("mlxfleet_node_breaker", states.names(states.BREAKER), NODE, by="node")
    return [
        timeline(
            "State of nodes",
            "What the router thinks of each node.",
            states.NODE,
            Query(state, "{{node}}"),
        ),
        timeline(
            "Circuit breakers",
            "open: the node gets nothing after several faults; half_open: one request as a probe.",
            states.BREAKER,
            Query(breaker, "{{node}}"),
        ),
        graph(
            "Sequences by node",
            "Sequences that the router has on each node.",
            "short",
            Query(total("mlxfleet_node_sequences", NODE, by="node"), "{{node}}"),
            width=6,
            stacked=True,
        ),
        graph(
            "Output by node",
            "Tokens per second that each node generates.",
            "short",
            Query(rate(GENERATED, MODEL, NODE, by="node"), "{{node}}"),
            width=6,
            stacked=True,
        ),
        graph(
            "Weight of nodes",
            "How much of the work a node gets for its condition, 100% for the best of its model:"
            " less when it is slower than when it was cool, short of memory or held back by heat.",
            "percentunit",
            Query(select("mlxfleet_node_weight", NODE), "{{node}}"),
            width=6,
            limits=Limits(0.9, 0.5, falling=True),
            top=1,
        ),
        graph(
            "Silence of nodes",
            "Time since the last report; nodes report four times a second.",
            "s",
            Query(select("mlxfleet_node_silence_seconds", NODE), "{{node}}"),
            width=6,
            limits=Limits(1, 2.5),
        ),
        graph(
            "Failovers",
            "Sequences per second that went on elsewhere, by the node that was lost or draining.",
            "short",
            Query(rate("mlxfleet_failovers_total", NODE, by="node"), "{{node}}"),
            width=6,
            limits=Limits(0.1, 1),
        ),
        graph(
            "Recoveries",
            "Sequences per second resumed after a process behind them restarted.",
            "short",
            Query(rate("mlxfleet_recoveries_total"), "sequences"),
            width=6,
            limits=Limits(0.1, 1),
        ),
        graph(
            "Not reported yet",
            "Requests sent to a node that its reports do not cover; they should be covered within"
            " a report or two.",
            "short",
            Query(select("mlxfleet_node_unreported_requests", NODE), "{{node}}"),
            width=6,
        ),
        graph(
            "Nodes refused",
            "Attempts to join per second that were not let in, by reason.",
            "short",
            Query(rate("mlxfleet_refused_nodes_total", by="reason"), "{{reason}}"),
            width=6,
            limits=Limits(0.01),
        ),
    ]


def processes() -> list[Panel]:
    """Processes of the front end, and what the router remembers."""
    index = total("mlxfleet_cache_index_blocks")
    index_limit = total("mlxfleet_cache_index_limit_blocks")
    dropped = rate("mlxfleet_cache_index_dropped_blocks_total")
    front = 'role=~"router|tokenizer|detokenizer"'
    memory = total("mlxfleet_process_memory_bytes", front, by="process")
    return [
        graph(
            "Memory of the front end",
            "Resident memory of router, tokenizers and detokenizers.",
            "bytes",
            Query(memory, "{{process}}"),
            width=6,
            stacked=True,
        ),
        graph(
            "Restarts",
            "Restarts of processes in the last 15 minutes; NODE/worker is a node's worker.",
            "short",
            Query("increase(mlxfleet_process_restarts_total[15m])", "{{process}}"),
            width=6,
            limits=Limits(1, 3),
        ),
        graph(
            "Silence of the front end",
            "Time since the last heartbeat of tokenizers and detokenizers.",
            "s",
            Query("mlxfleet_process_silence_seconds", "{{process}}"),
            width=6,
            limits=Limits(2, 5),
        ),
        graph(
            "Dropped frames",
            "Malformed messages per second that were dropped; there should be none.",
            "short",
            Query(rate("mlxfleet_dropped_frames_total", by="process"), "{{process}}"),
            width=6,
            limits=Limits(0.001),
        ),
        graph(
            "Index of caches",
            "Blocks that nodes are known to have cached, and how many the router remembers"
            " (--cache-index-blocks).",
            "short",
            Query(index, "blocks"),
            Query(index_limit, "limit"),
            width=6,
            colors={"limit": "red"},
        ),
        graph(
            "Forgotten blocks",
            "Blocks per second that the index forgot because it was full.",
            "short",
            Query(dropped, "blocks"),
            width=6,
            limits=Limits(1),
        ),
        graph(
            "Messages about caches",
            "Messages that were missed, and whole caches told anew, per second.",
            "short",
            Query(rate("mlxfleet_cache_event_gaps_total", NODE), "gaps"),
            Query(rate("mlxfleet_cache_snapshots_total", NODE), "snapshots"),
            width=6,
            limits=Limits(0.1),
        ),
        graph(
            "Versions",
            "Processes by version; while the fleet is being updated there are two.",
            "short",
            Query("count by (role, version) (mlxfleet_build_info)", "{{role}} {{version}}"),
            width=6,
        ),
    ]
