"""Prompts have exactly the wanted length."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.prompt_tokens import WordBook
from mlxfleet.common.errors import ConfigError

WORDS = ["".join(letters) for letters in product("abcde", repeat=3)]
HEAD = 3


def count(text: str) -> int:
    """A tokenizer with a token for each word, two for those with an e, and one for each line."""
    return len(re.findall(r"[a-z]+|\n", text)) + len(re.findall(r"[a-z]*e[a-z]*", text))


def make_book() -> WordBook:
    return WordBook(WORDS, count, lambda text: HEAD + count(text))


def test_only_words_of_one_token_are_used() -> None:
    drawn = make_book().draw(500, "seed")
    assert not any("e" in word for word in drawn)
    assert len(set(drawn)) > 50


@given(st.integers(HEAD + 1, 300), st.integers(0, 400))
def test_a_prompt_has_so_many_tokens_whatever_words_there_are(tokens: int, words: int) -> None:
    book = make_book()
    drawn = book.draw(max(words, 1), "seed")
    assert book.count_prompt(book.prompt(drawn, tokens)) == tokens


@pytest.mark.parametrize("tokens", [1, HEAD])
def test_a_prompt_shorter_than_what_surrounds_it_is_refused(tokens: int) -> None:
    book = make_book()
    with pytest.raises(ConfigError, match=f"takes {HEAD}"):
        book.prompt(book.draw(tokens, "seed"), tokens)


def test_a_shorter_draw_begins_a_longer_one() -> None:
    book = make_book()
    assert book.draw(20, "a")[:7] == book.draw(7, "a")
    assert book.draw(20, "a") != book.draw(20, "b")


def test_a_vocabulary_without_such_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        WordBook(["cab", "bed"], count, count)
