"""Elements of HTML and SVG. Whatever is not `Markup` already is escaped, so text from a measured
server cannot become part of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

# What XML has no place for, not even escaped.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
REPLACEMENT = "\ufffd"
EMPTY_ELEMENTS = {"meta", "path", "line", "rect", "circle", "polyline", "polygon"}

Value = str | float | None


class Markup(str):
    """Text that is markup."""

    __slots__ = ()


def text(plain: str) -> Markup:
    """Plain text as markup."""
    return Markup(escape(FORBIDDEN.sub(REPLACEMENT, plain), quote=True))


def tag(name: str, /, *children: str | None, **attributes: Value) -> Markup:
    """An element. Attributes that are None are left out; `class_` is class, `stroke_width` is
    stroke-width; numbers are rounded to hundredths, which is enough for pixels."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(attribute_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in EMPTY_ELEMENTS and not children:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[str | None], separator: str = "") -> Markup:
    """Children one after the other, without those that are None."""
    parts = (child if isinstance(child, Markup) else text(child) for child in children if child)
    return Markup(separator.join(parts))


def attribute_text(value: str | float) -> str:
    """A number as short as it can be, text as it is."""
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".") or "0"
