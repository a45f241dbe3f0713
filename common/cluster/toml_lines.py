"""Where in the text of a TOML file a key stands, for errors that point at it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

KeyPath = tuple[str | int, ...]

PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
DOTTED = rf"{PART}(?:\s*\.\s*{PART})*"
HEADER = re.compile(rf"^\s*(\[\[?)\s*({DOTTED})\s*\]")
ASSIGNMENT = re.compile(rf"^\s*({DOTTED})\s*=")
MULTILINE_QUOTES = ('"""', "'''")


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The line, from 1, of the key at `path`, or of the innermost table around it that is there.

    Keys inside of inline tables and arrays are on the line where the outer key is.
    """
    wanted = tuple(path)
    best, best_length = 1, 0
    for line, found in keys(text):
        length = common_prefix(found, wanted)
        if length == len(found) and length > best_length:
            best, best_length = line, length
    return best


def keys(text: str) -> Iterator[tuple[int, KeyPath]]:
    """Every table header and every assignment of a file, with its line and its whole path."""
    table: KeyPath = ()
    counts: dict[KeyPath, int] = {}
    quotes: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if quotes is not None:
            quotes = None if line.count(quotes) % 2 else quotes
            continue
        quotes = next((q for q in MULTILINE_QUOTES if line.count(q) % 2), None)
        if header := HEADER.match(line):
            table = resolve(split(header[2]), counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            yield number, table
        elif assignment := ASSIGNMENT.match(line):
            yield number, (*table, *split(assignment[1]))


def resolve(parts: KeyPath, counts: dict[KeyPath, int]) -> KeyPath:
    """A header's path with the index of the current element after each array of tables."""
    path: KeyPath = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if path in counts and position < len(parts) - 1:
            path = (*path, counts[path])
    return path


def split(dotted: str) -> KeyPath:
    """The parts of a dotted key, without quotes."""
    return tuple(part.strip("\"'") for part in re.findall(PART, dotted))


def common_prefix(left: Sequence[str | int], right: Sequence[str | int]) -> int:
    """How many parts two paths share at their beginning."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
