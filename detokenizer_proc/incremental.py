"""Text from tokens as they come: never half a character, and joined it is the full decoding.

`tokenizers.decoders.DecodeStream` is not used: it raises on byte-fallback tokens that are not
valid UTF-8 and cannot be flushed at the end.
"""

from __future__ import annotations

import codecs
from typing import Protocol

from mlxfleet.detokenizer_proc.vocabulary import Vocabulary


class IncrementalDecoder(Protocol):
    """Decodes one sequence."""

    def push(self, token: int) -> str:
        """Text that is certain after one more token."""

    def flush(self) -> str:
        """The rest, when no more tokens come."""


def make_decoder(vocabulary: Vocabulary, prompt_tail: list[int]) -> IncrementalDecoder:
    """The decoder for a tokenizer; `prompt_tail` is what the tokens continue."""
    kind = ByteDecoder if vocabulary.byte_level else WindowDecoder
    return kind(vocabulary, prompt_tail)


class ByteDecoder:
    """For byte-level tokenizers: joins bytes, holds back an unfinished character."""

    def __init__(self, vocabulary: Vocabulary, prompt_tail: list[int]) -> None:
        self._special = vocabulary.special
        self._bytes_of = vocabulary.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in prompt_tail:
            self.push(token)

    def push(self, token: int) -> str:
        """Text that is certain after one more token."""
        return "" if token in self._special else self._decoder.decode(self._bytes_of(token))

    def flush(self) -> str:
        """The rest."""
        return self._decoder.decode(b"", final=True)


class WindowDecoder:
    """For all other tokenizers: decodes the last tokens with and without the new ones.

    A run of byte tokens is held back to its end, because a byte that comes later can still
    change what the whole run means.
    """

    def __init__(self, vocabulary: Vocabulary, prompt_tail: list[int]) -> None:
        self._vocabulary = vocabulary
        self._context = list(prompt_tail)
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """Text that is certain after one more token."""
        if token in self._vocabulary.special:
            return ""
        self._new.append(token)
        return "" if self._vocabulary.is_byte(token) else self.flush()

    def flush(self) -> str:
        """The rest."""
        if not self._new:
            return ""
        before = self._vocabulary.decode(self._context)
        after = self._vocabulary.decode(self._context + self._new)
        self._context, self._new = self._new, []
        return after[len(before) :]
