"""A tokenizer whose control tokens have secret names, so that no text can spell them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

SECRET_BYTES = 12


class RenamedTokens:
    """A copy of `tokenizer` in which the tokens of `control`, names by id, have other `names`, by
    id too. Ids, and what becomes of all other text, stay the same.

    ValueError if there cannot be such a copy.
    """

    def __init__(self, tokenizer: Tokenizer, control: Mapping[int, str]) -> None:
        secret = secrets.token_hex(SECRET_BYTES)
        # A name begins and ends with punctuation as the tokens that only match whole words need.
        self.names = {token_id: f"<{secret}{token_id:x}>" for token_id in control}
        description = json.loads(tokenizer.to_str())
        rename(description, {name: self.names[token_id] for token_id, name in control.items()})
        self._tokenizer = from_description(description)
        self._expected = set(control) - {unknown_id(description["model"], self._tokenizer)}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that has control tokens by their secret names only."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def controls(self, ids: Iterable[int]) -> list[int]:
        """Those of the ids that are control tokens, without the one that also stands for text
        which the vocabulary does not have."""
        return [token_id for token_id in ids if token_id in self._expected]


def from_description(description: dict[str, Any]) -> Tokenizer:
    """A tokenizer from the structure of a tokenizer.json; ValueError if that is not valid."""
    try:
        return Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library has no exception type of its own
        raise ValueError(f"no copy of the tokenizer with renamed tokens: {error}") from error


def unknown_id(model: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    """The id of what a model's vocabulary does not have; None if there is none."""
    number, name = model.get("unk_id"), model.get("unk_token")
    return number if number is not None or name is None else tokenizer.token_to_id(name)


def rename(description: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens, which a model's vocabulary may have too, and drop merges that spell them."""
    description["truncation"] = description["padding"] = None
    for token in description["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = description["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not spells(pair, names)]


def spells(pair: str | list[str], names: Mapping[str, str]) -> bool:
    """Whether a merge makes one of the tokens, or something of one."""
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in names or right in names or left + right in names
