"""Prompts to token ids, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.messages import TokenizeChat, Tokenized, TokenizeFailed, TokenizeText
from mlxfleet.common.tokenizer_files import load_tokenizer
from mlxfleet.tokenizer_proc.encode import Encoder


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return load_tokenizer(demo_model, trust_remote_code=False)


def test_texts(tokenizer: Any) -> None:
    answer = Encoder(tokenizer).encode(TokenizeText("r", ["Hello world", "", "日本"], 100))
    assert isinstance(answer, Tokenized)
    assert answer.token_ids[:2] == [[19556, 905], []]
    assert tokenizer.decode(answer.token_ids[2]) == "日本"
    assert answer.block_hashes == [[], [], []]


def test_whole_blocks_are_hashed(tokenizer: Any) -> None:
    answer = Encoder(tokenizer).encode(TokenizeText("r", ["Hello world " * 40], 100))
    assert isinstance(answer, Tokenized)
    assert answer.block_hashes == [block_hashes(answer.token_ids[0])]
    assert answer.block_hashes[0]


def test_chat_is_rendered_with_the_template(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = Encoder(tokenizer).encode(TokenizeChat("r", messages, 100))
    assert isinstance(answer, Tokenized)
    assert tokenizer.decode(answer.token_ids[0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_special_tokens_in_a_message_are_what_the_template_makes_of_them(tokenizer: Any) -> None:
    answer = Encoder(tokenizer).encode(TokenizeChat("r", [{"role": "user", "content": ""}], 100))
    assert isinstance(answer, Tokenized)


class Failing:
    """A tokenizer that fails as the tokenizers library does."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        raise Exception("WordLevel error: Missing [UNK] token")


def test_whatever_encoding_raises_ends_one_request_only() -> None:
    answer = Encoder(Failing()).encode(TokenizeText("r", ["Hi"], 100))
    assert answer == TokenizeFailed("r", "the prompt cannot be encoded", "prompt")


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "chat template"),
        ("{% broken", "chat template"),
        (None, "no chat template"),
    ],
)
def test_refusals_name_the_messages(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str | None, word: str
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    answer = Encoder(tokenizer).encode(TokenizeChat("r", [{"role": "user", "content": "Hi"}], 100))
    assert isinstance(answer, TokenizeFailed)
    assert answer.param == "messages"
    assert word in answer.message


def test_a_huge_text_is_refused_after_its_beginning(tokenizer: Any) -> None:
    encoded: list[int] = []

    class Counting:
        def encode(self, text: str, **options: Any) -> Any:
            encoded.append(len(text))
            return tokenizer.encode(text, **options)

    answer = Encoder(Counting()).encode(TokenizeText("r", ["word " * 1_000_000], 1000))
    assert isinstance(answer, TokenizeFailed)
    assert (answer.param, answer.code) == ("prompt", "context_length_exceeded")
    assert sum(encoded) < 10_000


def test_a_long_text_of_few_tokens_is_encoded(tokenizer: Any) -> None:
    text = " " * 5000
    answer = Encoder(tokenizer).encode(TokenizeText("r", [text], 500))
    assert isinstance(answer, Tokenized)
    assert answer.token_ids == [tokenizer.encode(text)]
