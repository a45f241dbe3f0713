"""The README's option table is what the command takes."""

from __future__ import annotations

from pathlib import Path

from mlxfleet.common.option_table import option_table

README = Path(__file__).parent.parent / "README.md"


def test_option_table_is_current() -> None:
    text = README.read_text()
    table = text.partition("<!-- options:begin -->\n")[2].partition("<!-- options:end -->")[0]
    assert table == option_table(), "run make options"
