"""The dashboards are what the code makes, and complete."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from mlxfleet.common.dashboards.__main__ import dashboard_files
from tests.deploy.expressions import DASHBOARDS, dashboards, panels

NAMES = ("fleet.json", "macs.json", "node.json")
GRID_COLUMNS = 24


@pytest.mark.parametrize("name", NAMES)
def test_committed_dashboards_are_what_the_code_makes(name: str) -> None:
    made = dashboard_files()
    assert set(made) == {path.name for path in DASHBOARDS.glob("*.json")} == set(NAMES)
    assert (DASHBOARDS / name).read_text() == made[name], "run make dashboards"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_explains_itself(name: str) -> None:
    for panel in panels(dashboards()[name]):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert len(panel["description"]) > 15, panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("name", NAMES)
def test_panels_share_the_grid(name: str) -> None:
    places = [panel["gridPos"] for panel in dashboards()[name]["panels"]]
    assert all(place["x"] + place["w"] <= GRID_COLUMNS for place in places)
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]


def test_ids_are_unique() -> None:
    boards = dashboards().values()
    assert len({board["uid"] for board in boards}) == len(NAMES)
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_variables(name: str) -> None:
    variables = {v["name"]: v for v in dashboards()[name]["templating"]["list"]}
    assert list(variables) == ["datasource", "model", "node"]
    for label in ("model", "node"):
        assert variables[label]["multi"]
        assert variables[label]["includeAll"]


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two places have a cell in common."""
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )
