"""The table of `mlxfleet status`."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from mlxfleet.common.cluster.router_client import Fleet, FleetNode
from mlxfleet.common.load_progress import describe

COLUMNS = ("node", "chip", "model", "state", "running", "queued", "KV", "from cache", "tokens/s")
TEMPERATURE = "°C"
WHOLE = ("node", "state", "running", "queued", "from cache", "tokens/s")
STYLES = {"ready": "green", "busy": "green", "draining": "yellow", "loading": "yellow"}
GB = 1e9
UNKNOWN = "–"


def fleet_table(url: str, fleet: Fleet) -> Table:
    """A row per node. Temperatures have a column if some node knows one."""
    warm = any(node.temperature_c is not None for node in fleet.nodes)
    table = Table(title=url, title_justify="left")
    for column in (*COLUMNS, *([TEMPERATURE] if warm else [])):
        right = column in COLUMNS[4:] or column == TEMPERATURE
        table.add_column(column, justify="right" if right else "left", no_wrap=column in WHOLE)
    for node in sorted(fleet.nodes, key=lambda node: node.name):
        cells = row(node)
        if warm:
            cells.append(number(node.temperature_c))
        table.add_row(*cells)
    fenced = [node for node in fleet.nodes if node.fenced]
    if fenced:
        said = (f"{node.name} broke the protocol: {node.fenced}" for node in fenced)
        table.caption = escape("\n".join(said))
        table.caption_justify = "left"
    return table


def row(node: FleetNode) -> list[str]:
    """A node's cells."""
    style = STYLES.get(node.shown_state, "bold red")
    state = describe(node.loading) if node.loading is not None else node.shown_state
    return [
        escape(node.name),
        escape(node.chip) or UNKNOWN,
        escape(node.model) or UNKNOWN,
        f"[{style}]{escape(state) or UNKNOWN}[/]",
        str(node.running),
        str(node.queued),
        kv_share(node),
        cached_share(node),
        number(node.tokens_per_s),
    ]


def kv_share(node: FleetNode) -> str:
    """How much of the KV cache is taken, and of how many GB."""
    if node.kv_budget_bytes <= 0:
        return UNKNOWN
    share = node.kv_used_bytes / node.kv_budget_bytes
    return f"{share:.0%} of {node.kv_budget_bytes / GB:.1f} GB"


def cached_share(node: FleetNode) -> str:
    """The share of prompt tokens that had not to be computed."""
    total = node.cached_tokens + node.prefilled_tokens
    return f"{node.cached_tokens / total:.0%}" if total else UNKNOWN


def number(value: float | None) -> str:
    """A number that may be unknown."""
    return UNKNOWN if value is None else f"{value:.1f}"
