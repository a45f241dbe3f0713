"""What dashboards, rules and alerts ask for is what the code shows."""

from __future__ import annotations

from mlxfleet.common.metric_family import Family, families_of
from mlxfleet.common.metrics_docs import PLACES
from tests.deploy.expressions import all_expressions, labels_in, names_in, operands, recorded

SUFFIXES = ("_bucket", "_sum", "_count")
# Prometheus gives the first two to all that it scrapes; buckets have the third.
GIVEN = {"job", "instance", "le"}


def series() -> dict[str, set[str]]:
    """Labels by the name of a series."""
    labels: dict[str, set[str]] = {}
    families = [f for _, modules in PLACES for m in modules for f in families_of(m)]
    for family in families:
        for name in names_of(family):
            labels.setdefault(name, set()).update(family.labels)
    return labels


def names_of(family: Family) -> list[str]:
    """As they are exposed."""
    if family.kind != "histogram":
        return [family.name]
    return [family.name + suffix for suffix in SUFFIXES]


def test_every_name_exists() -> None:
    known = series().keys() | recorded()
    unknown = {
        f"{expression.where}: {name}"
        for expression in all_expressions()
        for name in names_in(expression.text) - known
    }
    assert not unknown


def test_every_label_exists() -> None:
    known = series()
    unknown = {
        f"{expression.where}: {name}{{{label}}}"
        for expression in all_expressions()
        for name, label in labels_in(expression.text)
        if name in known and label not in known[name] | GIVEN
    }
    assert not unknown


def test_every_recorded_series_is_used() -> None:
    asked = set().union(*(names_in(expression.text) for expression in all_expressions()))
    assert recorded() <= asked


def test_operands_of_a_condition() -> None:
    assert operands('up{job="a"} == 0') == ['up{job="a"} + 0']
    assert operands('a{x=~"b|c", y!=">1"} >= 0.5 * b and on (node) c > 1 or d == 0') == [
        'a{x=~"b|c", y!=">1"} + 0.5 * b',
        "c + 1",
        "d + 0",
    ]
