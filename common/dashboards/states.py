"""What states are called and how they are coloured, in the order in which code() numbers them."""

from __future__ import annotations

from mlxfleet.common.dashboards.looks import State

YES = (State("no", "red"), State("yes", "green"))
NODE = (
    State("ready", "green"),
    State("busy", "yellow"),
    State("loading", "blue"),
    State("draining", "purple"),
    State("hung", "orange"),
    State("dead", "red"),
    State("fenced", "red"),
)
BREAKER = (State("closed", "green"), State("half_open", "yellow"), State("open", "red"))
WORKER = (
    State("ready", "green"),
    State("loading", "blue"),
    State("hung", "orange"),
    State("dead", "red"),
)
THERMAL = (
    State("nominal", "green"),
    State("fair", "yellow"),
    State("serious", "orange"),
    State("critical", "red"),
)
PRESSURE = (State("normal", "green"), State("warning", "orange"), State("critical", "red"))


def names(states: tuple[State, ...]) -> tuple[str, ...]:
    """As they are in labels."""
    return tuple(state.name for state in states)
