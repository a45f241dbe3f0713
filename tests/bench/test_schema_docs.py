"""docs/benchmarking.md describes the records as they are."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mlxfleet.bench.records import ClientCost, Distribution, Request, Run, Sample, Summary

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text()


def documented(record: str) -> list[str]:
    """Fields in the first column of a record's table."""
    section = PAGE.partition(f"\n### {record}\n")[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize("record", [Run, Request, Sample, Summary])
def test_fields_are_those_of_the_record(record: type[msgspec.Struct]) -> None:
    config = record.__struct_config__
    assert sorted(documented(str(config.tag))) == sorted(record.__struct_fields__)


@pytest.mark.parametrize("part", [Distribution, ClientCost])
def test_fields_of_parts_are_named(part: type[msgspec.Struct]) -> None:
    assert all(f"`{name}`" in PAGE for name in part.__struct_fields__)
