"""The kinds of panels that the dashboards have, all of one look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common as parts
from grafana_foundation_sdk.builders import (
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import heatmap as heatmap_options
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from mlxfleet.common.dashboards.looks import (
    NO_LIMITS,
    Limits,
    State,
    fixed,
    legend,
    mappings,
    tooltip,
)

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | statetimeline.Panel | table.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, heatmap.Panel, statetimeline.Panel, table.Panel)

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
STAT_HEIGHT = 4


class Query(NamedTuple):
    """An expression, and what its series are called."""

    expr: str
    legend: str


class Column(NamedTuple):
    """A column of a table, out of an expression that has one sample for each row."""

    title: str
    expr: str
    unit: str
    limits: Limits = NO_LIMITS
    states: tuple[State, ...] = ()


def graph(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    limits: Limits = NO_LIMITS,
    stacked: bool = False,
    colors: Mapping[str, str] | None = None,
    top: float | None = None,
) -> timeseries.Panel:
    """Lines over time, from 0 on; `top` is the end of the axis."""
    lines = timeseries.Panel().min(0).legend(legend()).tooltip(tooltip())
    lines.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    lines.show_points(options.VisibilityMode.NEVER).fill_opacity(40 if stacked else 8)
    if stacked:
        lines.stacking(parts.StackingConfig().mode(options.StackingMode.NORMAL))
    if limits != NO_LIMITS:
        style = parts.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        lines.thresholds_style(style)
    if top is not None:
        lines.max(top)
    for name, color in (colors or {}).items():
        lines.override_by_name(name, [fixed(color)])
    return described(lines, title, text, width, limits, queries).unit(unit)


def figure(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    width: int = 3,
    limits: Limits = NO_LIMITS,
    states: tuple[State, ...] = (),
) -> stat.Panel:
    """The last value of each series, in large."""
    last = parts.ReduceDataOptions().calcs(["lastNotNull"])
    panel = stat.Panel().reduce_options(last).color_mode(options.BigValueColorMode.VALUE)
    panel.graph_mode(options.BigValueGraphMode.NONE if states else options.BigValueGraphMode.AREA)
    panel.mappings(mappings(states))
    return described(panel, title, text, width, limits, queries, STAT_HEIGHT).unit(unit)


def heat(title: str, text: str, unit: str, histogram_rate: str, width: int = 8) -> heatmap.Panel:
    """How values are distributed over time, out of the rate of a histogram's buckets by `le`."""
    colors = heatmap.HeatmapColorOptions().mode(heatmap_options.HeatmapColorMode.SCHEME)
    panel = heatmap.Panel().calculate(False).color(colors.scheme("Oranges").exponent(0.5).steps(64))
    panel.cell_values(heatmap.CellValues().unit("short"))
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(options.AxisPlacement.LEFT))
    panel.show_legend().mode(options.TooltipDisplayMode.SINGLE)
    described(panel, title, text, width, NO_LIMITS, ())
    target = query(0, Query(histogram_rate, "{{le}}")).format(PromQueryFormat.HEATMAP)
    return panel.with_target(target).unit(unit)


def timeline(
    title: str, text: str, states: tuple[State, ...], *queries: Query, width: int = 12
) -> statetimeline.Panel:
    """Which state there was when, a line for each series of values that stand for states."""
    panel = statetimeline.Panel().legend(legend()).tooltip(tooltip()).merge_values(True)
    panel.show_value(options.VisibilityMode.AUTO).mappings(mappings(states)).row_height(0.85)
    return described(panel, title, text, width, NO_LIMITS, queries).unit("short")


def overview(title: str, text: str, label: str, *columns: Column) -> table.Panel:
    """What columns say now, a row for each value of a label, which leads to the Node dashboard."""
    panel = described(table.Panel(), title, text, 24, NO_LIMITS, ()).unit("short")
    names = {label: label.capitalize()}
    for place, column in enumerate(columns):
        target = query(place, Query(column.expr, f"{{{{{label}}}}}")).instant()
        panel.with_target(target.format(PromQueryFormat.TABLE))
        names[f"Value #{ref(place)}"] = column.title
        panel.override_by_name(column.title, column_style(column))
    panel.override_by_name(names[label], [links_to_node(label)])
    panel.with_transformation(DataTransformerConfig("merge", options={}))
    organized = {"excludeByName": {"Time": True}, "renameByName": names}
    return panel.with_transformation(DataTransformerConfig("organize", options=organized))


def column_style(column: Column) -> list[DynamicConfigValue]:
    """Unit and colours of a column."""
    thresholds = {"mode": "absolute", "steps": column.limits.steps()}
    style = [DynamicConfigValue("unit", column.unit), DynamicConfigValue("thresholds", thresholds)]
    if column.states:
        style.append(DynamicConfigValue("mappings", mappings(column.states)))
    if column.states or column.limits != NO_LIMITS:
        style.append(DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    return style


def links_to_node(label: str) -> DynamicConfigValue:
    """From a cell with the value of a label."""
    url = (
        f"/d/mlxfleet-node?var-{label}=${{__value.text}}&${{datasource:queryparam}}"
        "&${__url_time_range}"
    )
    return DynamicConfigValue("links", [{"title": "Node dashboard", "url": url}])


def described(
    panel: P,
    title: str,
    text: str,
    width: int,
    limits: Limits,
    queries: tuple[Query, ...],
    height: int = HEIGHT,
) -> P:
    """What panels of all kinds have."""
    panel.title(title).description(text).datasource(DATASOURCE).span(width).height(height)
    steps = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(limits.steps())
    panel.thresholds(steps)
    for place, one in enumerate(queries):
        panel.with_target(query(place, one))
    return panel


def query(place: int, one: Query) -> prometheus.Dataquery:
    """A target of a panel."""
    target = prometheus.Dataquery().expr(one.expr).legend_format(one.legend)
    return target.ref_id(ref(place)).datasource(DATASOURCE)


def ref(place: int) -> str:
    """How Grafana calls a panel's queries: A, B, ..."""
    return chr(ord("A") + place)
