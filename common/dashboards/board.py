"""What the dashboards have in common: variables, links to each other, rows of panels."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from mlxfleet.common.dashboards.panels import DATASOURCE, Panel
from mlxfleet.common.dashboards.promql import MODEL

TAG = "mlxfleet"
# How Grafana's Prometheus data source numbers the kinds of queries of variables.
LABEL_VALUES = 1


class Board:
    """A dashboard in the making."""

    def __init__(self, name: str, text: str) -> None:
        self._last_id = 0
        self.dashboard = (
            dashboard.Dashboard(f"mlxfleet / {name}")
            .uid(f"mlxfleet-{name.lower()}")
            .description(text)
            .tags([TAG])
            .time("now-1h", "now")
            .refresh("10s")
            .timezone("browser")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .variables([datasource(), model(), node()])
            .link(others())
        )

    def row(self, title: str, *panels: Panel, repeat: str | None = None) -> None:
        """Panels under a title, from left to right as far as they fit; `repeat` names a variable
        for each of whose values there is such a row."""
        row = dashboard.Row(title).id(self._next_id())
        if repeat is not None:
            row.repeat(repeat)
        self.dashboard.with_row(row)
        for panel in panels:
            self.dashboard.with_panel(panel.id(self._next_id()))

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id


def datasource() -> dashboard.DatasourceVariable:
    """Which Prometheus."""
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def model() -> dashboard.QueryVariable:
    """Models that nodes serve; All has also the requests that named none."""
    query = "label_values(mlxfleet_node_ready, model)"
    return choice("model", "Model", query).all_value(".*")


def node() -> dashboard.QueryVariable:
    """Nodes of these models."""
    return choice("node", "Node", f"label_values(mlxfleet_node_ready{{{MODEL}}}, node)")


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Several values of a label, at first all."""
    everything = VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"qryType": LABEL_VALUES, "query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )


def others() -> dashboard.DashboardLink:
    """The other dashboards, with the same variables and times."""
    link = dashboard.DashboardLink("mlxfleet").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.include_vars(True).keep_time(True).as_dropdown(False).icon("dashboard")
