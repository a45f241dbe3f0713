"""Tables, and how they look on a page, in a terminal and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct
from rich.table import Table

from mlxfleet.bench.report.markup import Markup, tag

NUMERIC = re.compile(r"[-0-9.,%– ]*")


class PlainTable(Struct, frozen=True):
    """What stands in a table."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and stand to the right."""
        places = range(len(self.headings))
        return [all(NUMERIC.fullmatch(row[place]) for row in self.rows) for place in places]

    def without_empty(self) -> PlainTable:
        """Without the columns in which nothing stands."""
        places = range(len(self.headings))
        kept = [place for place in places if any(row[place] for row in self.rows)]
        rows = [[row[place] for place in kept] for row in self.rows]
        return PlainTable(self.caption, [self.headings[place] for place in kept], rows)


def html_table(table: PlainTable) -> Markup:
    """For a page."""
    classes = ["number" if numeric else None for numeric in table.numeric()]

    def line(name: str, cells: Sequence[str]) -> Markup:
        scope = "col" if name == "th" else None
        pairs = zip(cells, classes, strict=True)
        return tag("tr", *(tag(name, cell, class_=c, scope=scope) for cell, c in pairs))

    body = tag("tbody", *(line("td", row) for row in table.rows))
    head = tag("thead", line("th", table.headings))
    return tag("div", tag("table", tag("caption", table.caption), head, body), class_="scroll")


def rich_table(table: PlainTable) -> Table:
    """For a terminal; a rule where the first column changes."""
    shown = Table(title=table.caption)
    for heading, numeric in zip(table.headings, table.numeric(), strict=True):
        shown.add_column(heading, justify="right" if numeric else "left")
    for place, row in enumerate(table.rows):
        if place and row[0] != table.rows[place - 1][0] and row[0]:
            shown.add_section()
        shown.add_row(*row)
    return shown


def markdown_table(table: PlainTable) -> str:
    """For a document."""
    rules = ["--:" if numeric else "---" for numeric in table.numeric()]
    lines = [table.headings, rules, *table.rows]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that cannot end a cell or become markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
