"""Cutting special tokens' names in messages by a mark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mlxfleet.tokenizer_proc.errors import PromptError

# Private use: no white space, no meaning to templates, and one character that nothing splits.
FIRST_MARK, LAST_MARK = 0xE000, 0xF8FF
PRIVATE = re.compile(f"[{chr(FIRST_MARK)}-{chr(LAST_MARK)}]")
ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")

Cuts = Callable[[str], set[int]]


@dataclass(frozen=True)
class Marked:
    """Messages whose special tokens' names are cut by `mark`."""

    messages: list[dict[str, Any]]
    mark: str

    def without_marks(self, text: str) -> str:
        """A text without marks, which a template's `tojson` may have escaped."""
        return re.sub(rf"{self.mark}|(?i:\\u{ord(self.mark):04x})", "", text)

    def cuts(self, text: str, start: int, stop: int) -> bool:
        """Whether a mark cuts what stands at a place of a text: it is within, where the tokenizer
        ignores such characters, or behind a single character."""
        return self.mark in text[start : stop + (stop - start == 1)]


def marked_messages(messages: list[dict[str, Any]], cuts: Cuts, template: str) -> Marked | None:
    """The messages with marks where `cuts` says, except in the model's own text; None if it says
    so nowhere. PromptError if clients and template leave no character that could be the mark."""
    own = [is_own(message, key) for message in messages for key in message]
    values = [value for message in messages for value in message.values()]
    theirs = [value for value, mine in zip(values, own, strict=True) if not mine]
    if not any(cuts(text) for text in strings(theirs)):
        return None
    mark = unused_mark([template, *strings(values)])
    return Marked(
        [
            {
                key: value if is_own(message, key) else with_marks(value, cuts, mark)
                for key, value in message.items()
            }
            for message in messages
        ],
        mark,
    )


def is_own(message: dict[str, Any], key: str) -> bool:
    """Whether a field of a message is not a client's text: a role is one of ours, and what the
    assistant said is encoded as the model generated it."""
    return key == "role" or (message.get("role") == "assistant" and key != "name")


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, names in objects among them."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from strings(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from strings(item)


def with_marks(value: Any, cuts: Cuts, mark: str) -> Any:
    """A JSON value with its strings cut by marks."""
    match value:
        case str():
            ends = [0, *sorted(cuts(value)), len(value)]
            return mark.join(value[a:b] for a, b in pairwise(ends))
        case list():
            return [with_marks(item, cuts, mark) for item in value]
        case dict():
            return {with_marks(k, cuts, mark): with_marks(v, cuts, mark) for k, v in value.items()}
    return value


def unused_mark(texts: list[str]) -> str:
    """A private-use character that is in none of the texts, also not as a JSON escape."""
    used = {character for text in texts for character in PRIVATE.findall(text)}
    used |= {chr(int(digits, 16)) for text in texts for digits in ESCAPED.findall(text)}
    for number in range(FIRST_MARK, LAST_MARK + 1):
        if chr(number) not in used:
            return chr(number)
    raise PromptError("the messages have every private-use character, and special tokens' names")
