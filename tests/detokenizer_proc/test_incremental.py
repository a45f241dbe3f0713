"""Incremental text, joined, is the full decoding, for any tokens."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlxfleet.detokenizer_proc.incremental import make_decoder
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary
from tests.detokenizer_proc.tokenizers_for_tests import ALL

PIECES = [
    "e\u0301",
    "👨‍👩‍👧‍👦",
    "🇫🇷",
    "日本",
    "한국어",
    "नमस्ते",
    "🏳️‍🌈",
    "ﷺ",
    "a",
    " ",
    "\n",
    "ö",
    "\u200d",
]


@lru_cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary(ALL[kind]())


def incremental(vocabulary: Vocabulary, ids: list[int], tail: list[int]) -> tuple[str, list[str]]:
    decoder = make_decoder(vocabulary, tail)
    pieces = [decoder.push(token) for token in ids]
    pieces.append(decoder.flush())
    return "".join(pieces), pieces


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_random_tokens(kind: str, data: st.DataObject) -> None:
    words = vocabulary(kind)
    token = st.integers(0, words.tokenizer.get_vocab_size() - 1)
    ids = data.draw(st.lists(token, max_size=40))
    assert incremental(words, ids, [])[0] == words.decode(ids)


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 255), max_size=30))
def test_random_bytes(ids: list[int]) -> None:
    words = vocabulary("byte_fallback")
    tokens = [words.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in ids]
    assert incremental(words, tokens, [])[0] == words.decode(tokens)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(deadline=None, max_examples=200)
@given(text=st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join))
def test_any_text_is_never_cut_inside_a_character(kind: str, text: str) -> None:
    words = vocabulary(kind)
    ids = words.tokenizer.encode(text, add_special_tokens=False).ids
    whole, pieces = incremental(words, ids, [])
    assert whole == words.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace"])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_text_continues_the_prompt(kind: str, data: st.DataObject) -> None:
    words = vocabulary(kind)
    plain = st.integers(0, words.tokenizer.get_vocab_size() - 1).filter(
        lambda token: (
            not words.is_byte(token) and len(words.bytes_of(token).decode(errors="ignore"))
        )
    )
    tail = data.draw(st.lists(plain, min_size=1, max_size=8))
    ids = data.draw(st.lists(plain, max_size=8))
    before = words.decode(tail)
    if "\ufffd" in words.decode(tail + ids):
        return
    assert before + incremental(words, ids, tail)[0] == words.decode(tail + ids)


def test_the_demo_model(demo_model: Path) -> None:
    words = Vocabulary(Tokenizer.from_file(str(demo_model / "tokenizer.json")))
    assert words.byte_level

    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.integers(0, 49151), max_size=60))
    def check(ids: list[int]) -> None:
        assert incremental(words, ids, [])[0] == words.decode(ids)

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=10).map("".join))
    def check_text(text: str) -> None:
        ids = words.tokenizer.encode(text, add_special_tokens=False).ids
        assert incremental(words, ids, [])[0] == words.decode(ids)

    check()
    check_text()


def test_special_tokens_are_silent() -> None:
    words = vocabulary("byte_level")
    special = words.tokenizer.token_to_id("</s>")
    assert incremental(words, [special, special], [])[0] == ""


def test_bytes_of_tokens() -> None:
    words = vocabulary("byte_fallback")
    token = words.tokenizer.token_to_id
    assert words.bytes_of(token("<0xE2>")) == b"\xe2"
    assert words.bytes_of(token("▁He")) == b" He"
    assert words.bytes_of(10**6) == b""
