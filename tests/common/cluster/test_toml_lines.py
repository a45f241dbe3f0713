"""Keys are found where they stand."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.cluster.toml_lines import KeyPath, keys, line_of

TEXT = '''\
# a comment = 1
[cluster]
name = "a"
text = """
name = "not a key"
[front]
"""

[front]
host = "h"
settings.port = 1
"quoted key" = 2

[[nodes]]
name = "x"
[nodes.settings]
max_running = 3

[[nodes]]
name = "y"
settings = { max_running = 4,
  memory_gb = 5 }
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("cluster", "name"), 3),
        (("cluster", "missing"), 2),
        (("front",), 9),
        (("front", "host"), 10),
        (("front", "settings", "port"), 11),
        (("front", "quoted key"), 12),
        (("nodes", 0), 14),
        (("nodes", 0, "name"), 15),
        (("nodes", 0, "settings", "max_running"), 17),
        (("nodes", 1, "name"), 20),
        (("nodes", 1, "settings", "memory_gb"), 21),
        (("nodes", 1, "host"), 19),
        (("absent",), 1),
        ((), 1),
    ],
)
def test_line_of(path: KeyPath, line: int) -> None:
    assert line_of(TEXT, path) == line


names = st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True)
tables = st.dictionaries(names, st.dictionaries(names, st.integers(), max_size=4), max_size=4)


@given(tables)
def test_every_key_of_a_file_is_found_on_its_line(tables: dict[str, dict[str, int]]) -> None:
    lines: list[str] = []
    for table, values in tables.items():
        lines += ["", f"[{table}]", *(f"{key} = {value}" for key, value in values.items())]
    text = "\n".join(lines)
    data: dict[str, Any] = tomllib.loads(text)
    for table, values in data.items():
        assert lines[line_of(text, (table,)) - 1] == f"[{table}]"
        for key, value in values.items():
            assert lines[line_of(text, (table, key)) - 1] == f"{key} = {value}"


@given(st.text(alphabet="[]=\"\n.a1 #'", max_size=60))
def test_any_text_can_be_searched(text: str) -> None:
    assert all(line >= 1 for line, _ in keys(text))
