"""Prompts of an exact length in tokens, as a server with the same tokenizer counts them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mlxfleet.bench.conversations import Endpoint
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.tokenizer_files import load_fast_tokenizer, load_tokenizer

LEAST_WORDS = 64
MOST_WORDS = 4096
PLAIN_WORD = re.compile(r"[a-z]{2,12}")
CORRECTIONS = 16

Count = Callable[[str], int]


class WordBook:
    """Words that are one token each wherever they stand in a row of such words, so that a prompt's
    length and prefix in words are those in tokens."""

    def __init__(self, words: Sequence[str], count: Count, count_prompt: Count) -> None:
        """`count` counts the tokens of a text alone, `count_prompt` those of a whole prompt, with
        what the server puts around it. ConfigError if few of the words are one token."""
        ordinary = words[0] if words else ""
        once = count(f" {ordinary}")
        # Thrice, because a tokenizer may join neighbours.
        self._words = [
            word
            for word in words
            if count(f" {ordinary} {word} {word} {word}") == once + 3
            and count(f" {word} {ordinary}") == once + 1
        ][:MOST_WORDS]
        if len(self._words) < LEAST_WORDS:
            raise ConfigError(
                f"of this tokenizer's vocabulary only {len(self._words)} words are one token each"
                f" wherever they stand, too few to make prompts of: use --sharegpt or --prompts"
            )
        self.count = count
        self.count_prompt = count_prompt

    def draw(self, tokens: int, seed: str) -> list[str]:
        """So many words; the same for the same seed, and a shorter draw begins a longer one."""
        return random.Random(seed).choices(self._words, k=tokens)

    def prompt(self, words: Sequence[str], tokens: int) -> str:
        """Of these words as many as give a whole prompt of so many tokens; more if they do not
        suffice. ConfigError if there is no such prompt."""
        kept = list(words[:tokens])
        for _ in range(CORRECTIONS):
            text = "".join(f" {word}" for word in kept)
            over = self.count_prompt(text) - tokens
            if over == 0 and kept:
                return text
            if over >= len(kept):
                raise ConfigError(
                    f"a prompt of {tokens} tokens is too short: what belongs to every prompt takes"
                    f" {over + tokens - len(kept)}"
                )
            kept = kept[:-over] if over > 0 else [*kept, *kept[:1] * -over]
        raise ConfigError(f"this tokenizer gives no prompt of exactly {tokens} tokens")

    def question(self, words: Sequence[str]) -> str:
        """A later turn of a conversation: a line of its own."""
        return "\n" + "".join(f" {word}" for word in words) + "\n"


def open_word_book(folder: Path, endpoint: Endpoint, *, trust_remote_code: bool) -> WordBook:
    """That of a model folder's tokenizer. For chats, prompts are counted inside the model's chat
    template, if it has one."""
    fast = load_fast_tokenizer(folder, trust_remote_code=trust_remote_code)

    def count(text: str) -> int:
        return len(fast.encode(text, add_special_tokens=False))

    def count_completion(text: str) -> int:
        return len(fast.encode(text, add_special_tokens=True))

    in_order = sorted(fast.get_vocab().values())
    decoded = (text.strip() for text in fast.decode_batch([[token] for token in in_order]))
    words = dict.fromkeys(text for text in decoded if PLAIN_WORD.fullmatch(text))
    count_prompt: Count = count_completion
    if endpoint == "chat":
        count_prompt = chat_counter(folder, count, trust_remote_code=trust_remote_code)
    return WordBook(list(words)[: 2 * MOST_WORDS], count, count_prompt)


def chat_counter(folder: Path, count: Count, *, trust_remote_code: bool) -> Count:
    """Counts a user's message together with the chat template around it."""
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        return count

    def count_chat(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return len(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )

    return count_chat
