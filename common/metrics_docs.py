"""docs/metrics.md, made from the families that the code declares.

`python -m mlxfleet.common.metrics_docs docs/metrics.md` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from mlxfleet.common.metric_family import Family, families_of
from mlxfleet.router import metric_families as router_families
from mlxfleet.workers import machine_metric_families as machine_families
from mlxfleet.workers import metric_families as node_families

HEAD = """# Metrics

Made from the code by `python -m mlxfleet.common.metrics_docs docs/metrics.md`.

Every family is in one place: what the router sees is at its `/metrics`, what a node does at the
node's own, whose address Prometheus gets from the router's `/metrics/targets` (`http_sd`). The few
names that are in both have other label values there, so that sums count nothing twice.
Seconds, bytes and ratios are plain; histograms have the suffixes `_bucket`, `_sum` and `_count`.
"""
TABLE = "| metric | kind | labels | meaning |\n|---|---|---|---|\n"
PLACES: list[tuple[str, tuple[ModuleType, ...]]] = [
    ("The router's", (router_families,)),
    ("A node's", (node_families, machine_families)),
]


def metrics_page() -> str:
    """The page."""
    text = HEAD
    for title, modules in PLACES:
        rows = [row(family) for module in modules for family in families_of(module)]
        text += f"\n## {title}\n\n{TABLE}" + "".join(rows)
    return text


def row(family: Family) -> str:
    """A family's row."""
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.text} |\n"


def main() -> None:
    """Write the page."""
    Path(sys.argv[1]).write_text(metrics_page())


if __name__ == "__main__":
    main()
