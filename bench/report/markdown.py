"""docs/benchmarks.md: what was measured, as a document that nobody types."""

from __future__ import annotations

from mlxfleet.bench.report.cautions import cautions
from mlxfleet.bench.report.facts import facts
from mlxfleet.bench.report.groups import Group, groups_of, in_words
from mlxfleet.bench.report.loaded import Loaded
from mlxfleet.bench.report.method import method
from mlxfleet.bench.report.plain_table import PlainTable, escaped, markdown_table
from mlxfleet.bench.report.tables import ratios_table, sides_table, starts_table, verdicts_table
from mlxfleet.bench.servers import MLXFLEET

OPENING = (
    "Written by `mlxfleet bench report --markdown` from the records of the runs, never by hand."
    " `python -m mlxfleet.bench.benchmarks` and `mlxfleet.bench.drift` measure and write it."
    " Machines differ and change within minutes, so ratios of one run say more than absolute"
    " figures."
)


def markdown(loaded: Loaded) -> str:
    """The document."""
    groups = groups_of(loaded)
    parts = [
        "# Benchmarks",
        OPENING,
        *(f"> {escaped(caution)}" for caution in cautions(loaded)),
        *(part for group in groups for part in group_parts(group)),
        *comparison_parts(loaded),
        *table_parts(starts_table(loaded)),
        "## How it was measured",
        *method(loaded),
        "## With what",
        *fact_parts(loaded),
    ]
    return "\n\n".join(parts) + "\n"


def group_parts(group: Group) -> list[str]:
    """One model's figures; where mlxfleet is one of several, also its ratio to the best of them."""
    ours = ratios_table(group, MLXFLEET) if MLXFLEET in group.sides else None
    return [
        f"## {escaped(group.model)}: {', '.join(escaped(side) for side in group.sides)}",
        escaped(in_words(group.data.items())) + ".",
        *table_parts(sides_table(group)),
        *(table_parts(ours) if ours else []),
    ]


def comparison_parts(loaded: Loaded) -> list[str]:
    """What the comparisons found."""
    tables = [table_parts(verdicts_table(found)) for found in loaded.comparisons]
    return ["## Comparisons", *(part for parts in tables for part in parts)] if tables else []


def table_parts(table: PlainTable) -> list[str]:
    """A table under its caption; nothing for one without lines."""
    return [escaped(table.caption) + ":", markdown_table(table)] if table.rows else []


def fact_parts(loaded: Loaded) -> list[str]:
    """Names and what is so, commands as they are typed."""
    parts = []
    for name, value in facts(loaded):
        if name in ("command", "started by"):
            parts.append(f"{name}:\n\n```\n{value}\n```")
        else:
            parts.append("\n".join([f"{name}:\n", *(f"- {escaped(v)}" for v in value.split("\n"))]))
    return parts
