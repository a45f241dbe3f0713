"""What is not markup is escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.report.markup import Markup, tag, text
from mlxfleet.bench.report.plain_table import PlainTable, html_table, markdown_table


@given(st.text(), st.text())
def test_any_text_is_well_formed_and_comes_back(content: str, attribute: str) -> None:
    element = ElementTree.fromstring(tag("p", content, title=attribute))
    assert len(element) == 0
    if content.isprintable():
        assert (element.text or "") == content


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert isinstance(text("a"), Markup)


def test_attributes_without_value_are_left_out_and_numbers_are_short() -> None:
    assert tag("rect", x=1.0, y=0.126, class_="a", width=None) == (
        '<rect x="1" y="0.13" class="a"/>'
    )


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_any_table_is_well_formed(rows: list[tuple[str, str]]) -> None:
    table = PlainTable("caption", ["a", "b"], rows)
    assert len(ElementTree.fromstring(html_table(table)).findall(".//tbody/tr")) == len(rows)
    assert len(markdown_table(table).split("\n")) == len(rows) + 2
