"""Shares of what a node has that it uses, for each node."""

from __future__ import annotations

from mlxfleet.common.dashboards.promql import MODEL, NODE, rate, share, total

HERE = (NODE, MODEL)
BY = "node"
PREFILLED = "mlxfleet_prefilled_tokens_total"
HITS = "mlxfleet_prefix_cache_hit_tokens_total"


def of_limit(used: str, limit: str) -> str:
    """How much of a limit is used, by node."""
    return share(total(used, *HERE, by=BY), total(limit, *HERE, by=BY))


def idle_share() -> str:
    """Share of the time in which there was something to run that the device stood idle."""
    idle = rate("mlxfleet_worker_idle_seconds_total", *HERE, by=BY)
    busy = rate("mlxfleet_worker_busy_seconds_total", *HERE, by=BY)
    return share(idle, f"({idle} + {busy})")


def kv_share() -> str:
    """How much of the memory for running sequences is used."""
    used = total("mlxfleet_kv_bytes", *HERE, 'state="running"', by=BY)
    return share(used, total("mlxfleet_kv_limit_bytes", *HERE, by=BY))


def hit_share() -> str:
    """Share of prompt tokens that did not have to be computed."""
    hits = rate(HITS, *HERE, by=BY)
    return share(hits, f"({hits} + {rate(PREFILLED, *HERE, by=BY)})")
