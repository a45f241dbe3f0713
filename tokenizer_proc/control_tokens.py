"""Which of a tokenizer's tokens steer the model, and where a text has their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

MARKUP = re.compile(r"[<\[{(|｜].*[>\]})|｜]", re.DOTALL)


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Names of a tokenizer's control tokens by id: its special tokens, and those of its other added
    tokens that are markup of its chat template, as `<tool_call>` and `<think>` are of Qwen's.

    What else was added is text that has a token of its own, as HTML tags and line breaks in Gemma.
    """
    template = str(tokenizer.chat_template or "")
    return {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content
        and (token.special or (MARKUP.fullmatch(token.content) and token.content in template))
    }


class Names:
    """Finds the names of control tokens in a text, whole ones, and parts at its two ends that
    together with what a template writes beside it could become whole."""

    def __init__(self, names: Iterable[str]) -> None:
        names = set(names)
        self._pattern = re.compile(trie_pattern(names)) if names else None
        self._beginnings = {name[:size] for name in names for size in range(1, len(name))}
        self._endings = {name[size:] for name in names for size in range(1, len(name))}
        self._longest = max(map(len, names), default=0)

    def __bool__(self) -> bool:
        return self._pattern is not None

    def cuts(self, text: str) -> set[int]:
        """Positions in a text at which it has to be cut so that no name is left in one piece: after
        the first character of each name, before the last one of a name's rest at the beginning."""
        cuts = {start + 1 for start in self._starts(text)}
        for size in range(1, min(self._longest, len(text) + 1)):
            if text[-size:] in self._beginnings:
                cuts.add(len(text) - size + 1)
            if text[:size] in self._endings:
                cuts.add(size - 1)
        return cuts

    def _starts(self, text: str) -> Iterator[int]:
        """Where names start, also inside of others."""
        if self._pattern is None:
            return
        found = self._pattern.search(text)
        while found:
            yield found.start()
            found = self._pattern.search(text, found.start() + 1)


def trie_pattern(words: Iterable[str]) -> str:
    """A regular expression that matches any of the words and looks at each character of a text only
    once per start, however many words there are."""
    trie: dict[str, Any] = {}
    for word in words:
        node = trie
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return branch(trie)


def branch(node: dict[str, Any]) -> str:
    """A trie's node as a regular expression."""
    # A match of the shortest word is enough to say where one starts.
    if "" in node:
        return ""
    options = [re.escape(character) + branch(child) for character, child in node.items()]
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
