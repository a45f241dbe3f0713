"""Every expression in deploy/, and what it is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
DASHBOARDS = DEPLOY / "grafana"

TEXT = re.compile(r'"[^"]*"')
NAME = re.compile(r"(?:\w+:)?mlxfleet_\w+(?::\w+)?")
SELECTOR = re.compile(rf"({NAME.pattern})\{{([^}}]*)\}}")
COMPARISON = re.compile(r"==|!=|>=|<=|>|<")
SET_OPERATOR = re.compile(r"\b(?:and|or)\b(?:\s+on\s+\([^)]*\))?")


class Expression(NamedTuple):
    """An expression, where it is, and what Grafana calls its series."""

    where: str
    text: str
    legend: str = ""


def dashboards() -> dict[str, dict[str, Any]]:
    """Each dashboard by the name of its file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_expressions() -> Iterator[Expression]:
    """Of every panel."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                where = f"{name}: {panel['title']} {target['refId']}"
                yield Expression(where, target["expr"], target["legendFormat"])


def rules() -> Iterator[dict[str, Any]]:
    """Recording rules and alerts."""
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    """Alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> set[str]:
    """Names that recording rules make."""
    return {rule["record"] for rule in rules() if "record" in rule}


def all_expressions() -> list[Expression]:
    """Of panels and of rules."""
    of_rules = [Expression(r.get("alert") or r["record"], r["expr"]) for r in rules()]
    return [*panel_expressions(), *of_rules]


def names_in(text: str) -> set[str]:
    """Metrics and recorded series that an expression asks for."""
    return set(NAME.findall(TEXT.sub("", text)))


def labels_in(text: str) -> Iterator[tuple[str, str]]:
    """Name and label of each matcher."""
    for name, matchers in SELECTOR.findall(text):
        for label in re.findall(r"(\w+)\s*[=!]", TEXT.sub("", matchers)):
            yield name, label


def operands(condition: str) -> list[str]:
    """The parts of an alert's condition, each of which has data also while nothing is wrong:
    comparisons, which would filter, become sums."""
    spared: list[str] = []

    def spare(match: re.Match[str]) -> str:
        spared.append(match.group())
        return f'"{len(spared) - 1}"'

    bare = re.sub(r"\{[^}]*\}", spare, condition)
    parts = SET_OPERATOR.split(bare)
    return [
        re.sub(r'"(\d+)"', lambda m: spared[int(m.group(1))], COMPARISON.sub("+", part)).strip()
        for part in parts
    ]
