"""Where Prometheus finds the metrics of nodes, for its `http_sd_configs`."""

from __future__ import annotations

from typing import TypedDict

from mlxfleet.router.nodes import Nodes


class ScrapeTarget(TypedDict):
    """One group of targets, as Prometheus reads it."""

    targets: list[str]
    labels: dict[str, str]


def scrape_targets(nodes: Nodes) -> list[ScrapeTarget]:
    """The nodes that are known, also those that are dead: Prometheus should notice that.

    Their names are in labels that begin with `__meta_`, for relabelling; nodes name themselves in
    what they show.
    """
    return [
        {
            "targets": [status.metrics_address],
            "labels": {
                "__meta_mlxfleet_node": name,
                "__meta_mlxfleet_model": nodes.model_of(name),
                "__meta_mlxfleet_host": status.info.host,
            },
        }
        for name, status in sorted(nodes.status.items())
        if status.metrics_address
    ]
