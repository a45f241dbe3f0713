"""docs/metrics.md, and that what it says is all there is."""

from __future__ import annotations

from pathlib import Path

from mlxfleet.common.metric_family import Family, families_of
from mlxfleet.common.metrics_docs import PLACES, metrics_page

ROOT = Path(__file__).parents[2]
SUFFIX = {"counter": "_total"}


def declared() -> list[Family]:
    """All families."""
    return [family for _, modules in PLACES for m in modules for family in families_of(m)]


def test_the_page_is_what_the_code_makes() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page()


def test_names_are_as_prometheus_wants_them() -> None:
    for family in declared():
        assert family.name.startswith("mlxfleet_")
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert bool(family.buckets) == (family.kind == "histogram"), family.name
        assert not {"rid", "request", "key"} & set(family.labels)


def test_every_declared_family_is_recorded_somewhere() -> None:
    """A family that no code names but its declaration would never be set."""
    code = {
        path: path.read_text()
        for folder in ("router", "workers", "common")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "metric_families.py"
    }
    for _, modules in PLACES:
        for module in modules:
            for name, value in vars(module).items():
                if isinstance(value, Family):
                    users = [p for p, text in code.items() if f"families.{name}" in text]
                    assert users, f"nobody records {name}"
