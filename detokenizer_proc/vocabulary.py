"""Tokens as bytes, for tokenizers that have such a thing."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
METASPACE = "\u2581"


def byte_level_alphabet() -> dict[str, int]:
    """The characters with which byte-level BPE writes bytes (Radford et al. 2019, GPT-2):
    printable Latin-1 stands for itself, the rest for the code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


class Vocabulary:
    """A `tokenizers.Tokenizer` with what its decoder makes of single tokens.

    `byte_level` says that decoding is nothing but joining the tokens' bytes; `special` are the
    tokens that never show in text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.byte_level = type(tokenizer.decoder).__name__ == "ByteLevel"
        self._alphabet = byte_level_alphabet()
        self.special = {
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self.bytes_of = lru_cache(maxsize=65536)(self._bytes_of)

    def decode(self, ids: list[int]) -> str:
        """Full decoding, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def is_byte(self, token: int) -> bool:
        """Whether a token stands for one byte of a character that has no token of its own."""
        piece = self._piece(token)
        return piece is not None and BYTE_TOKEN.fullmatch(piece) is not None

    def _piece(self, token: int) -> str | None:
        """A token's text in the vocabulary; the library raises for what is no 32-bit number."""
        return self.tokenizer.id_to_token(token) if 0 <= token < 2**32 else None

    def _bytes_of(self, token: int) -> bytes:
        piece = self._piece(token)
        if piece is None:
            return b""
        if self.byte_level:
            # Added tokens are plain text, which the byte-level decoder passes on as it is.
            if all(character in self._alphabet for character in piece):
                return bytes(self._alphabet[character] for character in piece)
            return bytes(piece.encode())
        if match := BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match.group(1), 16)])
        return bytes(piece.replace(METASPACE, " ").encode())
