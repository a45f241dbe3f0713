"""Limits, states, legends: how panels of all kinds look."""

from __future__ import annotations

from typing import NamedTuple

from grafana_foundation_sdk.builders import common as parts
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models.dashboard import (
    DynamicConfigValue,
    Threshold,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)


class Limits(NamedTuple):
    """From where on a figure needs attention, and from where on action. A figure that should be
    high is `falling`: it needs them below."""

    warning: float | None = None
    critical: float | None = None
    falling: bool = False

    def steps(self) -> list[Threshold]:
        """Colours from the lowest value up."""
        if self.falling:
            borders = [(None, "red"), (self.critical, "orange"), (self.warning, "green")]
        else:
            borders = [(None, "green"), (self.warning, "orange"), (self.critical, "red")]
        return [Threshold(value, color) for value, color in borders[:1]] + [
            Threshold(value, color) for value, color in borders[1:] if value is not None
        ]


NO_LIMITS = Limits()


class State(NamedTuple):
    """What a coded value means."""

    name: str
    color: str


def mappings(states: tuple[State, ...]) -> list[ValueMapping]:
    """Names and colours for 0, 1, ..."""
    results = {
        str(place): ValueMappingResult(text=state.name, color=state.color, index=place)
        for place, state in enumerate(states)
    }
    return [ValueMap(results)] if results else []


def fixed(color: str) -> DynamicConfigValue:
    """A series' colour."""
    return DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})


def legend() -> parts.VizLegendOptions:
    """Below the panel."""
    shown = parts.VizLegendOptions().show_legend(True)
    return shown.display_mode(options.LegendDisplayMode.LIST).placement(
        options.LegendPlacement.BOTTOM
    )


def tooltip() -> parts.VizTooltipOptions:
    """All series of a moment, the highest first."""
    shown = parts.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
    return shown.sort(options.SortOrder.DESCENDING)
